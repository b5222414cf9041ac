#!/usr/bin/env bash
# Submits benchmark jobs: one array per GPU count (an array has one GPU request), then one job that
# renders the pages after all of them, whether they failed or not.
#
#     slurm/submit.sh [--dry-run | --status] [PARAMS.yaml ...] [-- SBATCH-OPTION ...]
#
# Without files: all of params/baseline. Jobs that are queued, or have a result, are left out.
# --dry-run prints the sbatch commands and needs no Slurm; --status lists what was submitted.
# What follows -- wins over our options; of it only partition, account and the like reach the pages' job.
# Settings of a site are in slurm/site.sh (see slurm/site.example.sh).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

dry_run=false
files=()
while (($#)); do
    case $1 in
        --dry-run) dry_run=true ;;
        --status) status=true ;;
        --) shift && break ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$root/slurm/submit.sh" && exit ;;
        -*) echo "submit.sh: unknown option $1; options of sbatch go after --" >&2 && exit 2 ;;
        *) files+=("$(realpath -s -- "$1")") ;;
    esac
    shift
done
options=("$@")
cd "$root"
if ((${#files[@]} == 0)); then files=("$root"/params/baseline/*.yaml); fi

JOB_OPTIONS=()
# shellcheck source=/dev/null
if [[ -f slurm/site.sh ]]; then source slurm/site.sh; fi
if [[ -x .venv/bin/wanreport ]]; then PATH="$PWD/.venv/bin:$PATH"; fi
mkdir -p slurm/logs # Slurm does not make it, and a job without its log file fails at once

if ${status:-false}; then exec python slurm/jobs.py status; fi
checked=0
wanreport check "${files[@]}" >&2 || checked=$?
((checked <= 1)) || exit "$checked"
((checked == 0)) || echo "submit.sh: warning: these models are needed where the jobs run" >&2

# The index finds jobs below params/; a file from elsewhere is copied there, each to a folder of its
# own, as two of them may have one name.
for i in "${!files[@]}"; do
    file=${files[i]}
    if [[ $file != "$root"/params/* ]]; then
        content=$(sha256sum <"$file")
        file=params/submitted/${content:0:8}/$(basename "$file")
        $dry_run || { mkdir -p "${file%/*}" && cp -- "${files[i]}" "$file"; }
        if $dry_run; then file=${files[i]}; fi
    fi
    files[i]=${file#"$root"/}
done

# One line a group: GPUs, minutes, then the files, tab-separated.
groups=$(python slurm/jobs.py groups "${files[@]}")
if [[ -z $groups ]]; then echo "Nothing to submit: all jobs are queued or have a result." && exit; fi

# Of the options given, those that the job of the pages needs too.
shared=()
for ((i = 0; i < ${#options[@]}; i++)); do
    case ${options[i]} in
        --account=* | --partition=* | --qos=* | --reservation=* | --clusters=* | --mail-*=* | \
            -[ApqM]?*) shared+=("${options[i]}") ;;
        --account | --partition | --qos | --reservation | --clusters | --mail-type | \
            --mail-user | -[ApqM]) shared+=("${options[i]}" "${options[i + 1]:-}") ;;
    esac
done

# Calls `run` with the command of each array, as its label, its files' number and its words.
each_array() {
    local run=$1 gpus minutes members group nodes
    while IFS=$'\t' read -r gpus minutes members; do
        IFS=$'\t' read -ra group <<<"$members"
        local words=(--job-name="wanreport-${gpus}gpu" --time="$minutes"
            --comment="wanreport ${#group[@]} jobs"
            --array="0-$((${#group[@]} - 1))${THROTTLE:+%$THROTTLE}")
        # A neighbour on the node would share its PCIe links and host memory, and so be measured too.
        # A rehearsal measures nothing.
        if ((gpus)); then
            nodes=$(((gpus + ${GPUS_PER_NODE:-$gpus} - 1) / ${GPUS_PER_NODE:-$gpus}))
            until ((gpus % nodes == 0)); do nodes=$((nodes + 1)); done
            words+=(--gres="gpu:${GPU_TYPE:+$GPU_TYPE:}$((gpus / nodes))" --exclusive --mem=0)
            if ((nodes > 1)); then words+=(--nodes="$nodes" --ntasks="$nodes"); fi
        else
            words+=(--cpus-per-task=2 --mem=8G)
        fi
        "$run" "${gpus}GPU" "${words[@]}" "${JOB_OPTIONS[@]}" "${options[@]}" \
            slurm/jobs.sbatch "${group[@]}"
    done <<<"$groups"
}

# shellcheck disable=SC2329 # each_array calls it
try() {
    sbatch --test-only "${@:2}" </dev/null && return
    echo "submit.sh: Slurm has no place for the $1 jobs, and nothing was queued; if a job needs more GPUs than a node has, set GPUS_PER_NODE in slurm/site.sh" >&2
    exit 1
}

failed=0
dependency=afterany
submit() {
    local label=$1 id
    shift
    printf '%q ' sbatch --parsable "$@" && echo
    if $dry_run; then
        id="ID-OF-$label"
    elif id=$(sbatch --parsable "$@" </dev/null); then
        id=${id%%;*} # "id;cluster" on a federation
        echo "  job $id"
    else
        failed=1
        return
    fi
    if [[ $label == INDEX ]]; then return; fi
    dependency+=":$id"
    $dry_run || python slurm/jobs.py keep "$id" "${group[@]}"
}

# All are tried before the first is queued: a job that no node can take is refused here.
$dry_run || each_array try
each_array submit

# afterany, because after afterok one failed job would leave the pages unmade for ever.
if [[ $dependency == afterany ]]; then exit 1; fi
submit INDEX "${shared[@]}" --dependency="$dependency" --kill-on-invalid-dep=yes slurm/index.sbatch
exit "$failed"
