#!/usr/bin/env bash
# Submits benchmark jobs: one array per GPU count (an array has one GPU request), then one job that
# renders the pages after all of them, whether they failed or not.
#
#     slurm/submit.sh [--dry-run] [PARAMS.yaml ...] [-- SBATCH-OPTION ...]
#
# Without files: all of params/baseline. --dry-run prints the sbatch commands and needs no Slurm.
# What follows -- goes to every sbatch. GPU_TYPE=h100 asks for --gres=gpu:h100:N.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

dry_run=false
files=()
while (($#)); do
    case $1 in
        --dry-run) dry_run=true ;;
        --) shift && break ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$root/slurm/submit.sh" && exit ;;
        -*) echo "submit.sh: unknown option $1; options of sbatch go after --" >&2 && exit 2 ;;
        *) files+=("$(realpath -s --relative-to="$root" -- "$1")") ;;
    esac
    shift
done
options=("$@")
cd "$root"
if ((${#files[@]} == 0)); then files=(params/baseline/*.yaml); fi

if [[ -x .venv/bin/wanreport ]]; then PATH="$PWD/.venv/bin:$PATH"; fi
wanreport check "${files[@]}" >&2

# One line a group: the GPU count, then the files, tab-separated.
groups=$(python - "${files[@]}" <<'PYTHON'
import sys
from wanreport.jobs.job import load_job

groups: dict[int, list[str]] = {}
for file in sys.argv[1:]:
    groups.setdefault(load_job(file).num_gpus, []).append(file)
for gpus, files in sorted(groups.items()):
    print(gpus, *files, sep="\t")
PYTHON
)

# Prints the command and, unless this is a dry run, runs it. Sets $id to the job's id.
submit() {
    local label=$1
    shift
    printf '%q ' sbatch --parsable "$@" && echo
    if $dry_run; then
        id="ID-OF-$label"
    else
        id=$(sbatch --parsable "$@")
        id=${id%%;*} # "id;cluster" on a federation
        echo "  job $id"
    fi
}

mkdir -p slurm/logs # Slurm does not make it, and a job without its log file fails at once
dependency=afterany
while IFS=$'\t' read -r gpus members; do
    IFS=$'\t' read -ra group <<<"$members"
    submit "${gpus}GPU" "${options[@]}" --job-name="wanreport-${gpus}gpu" \
        --gres="gpu:${GPU_TYPE:+$GPU_TYPE:}$gpus" --array="0-$((${#group[@]} - 1))" \
        slurm/jobs.sbatch "${group[@]}"
    dependency+=":$id"
done <<<"$groups"

# afterany, because after afterok one failed job would leave the pages unmade for ever.
submit INDEX "${options[@]}" --dependency="$dependency" --kill-on-invalid-dep=yes \
    slurm/index.sbatch
