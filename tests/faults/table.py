"""The faults, what is promised, and which test sees to it. ``python -m tests.faults.table`` writes
docs/faults.md."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs/faults.md"


class Fault(NamedTuple):
    fault: str
    how: str  # it is brought about
    seen: str  # by the user
    kept: str
    test: str  # a function in this folder, or a file in tests/


FAULTS = {
    "While measuring": [
        Fault("A rank is killed", "SIGKILL to rank 1 of a job",
              "The record is `failed`, names rank, signal and step, and says where the logs are",
              "The jobs before and after it; the next call measures it again",
              "test_killed.py::test_a_killed_rank"),
        Fault("A rank of torchrun is killed", "a rank kills itself; the other one hangs",
              "The reason names the rank that died first and not its echo", "The ranks' logs",
              "measure/test_launch.py"),
        Fault("A collective hangs", "SIGSTOP to rank 1",
              "The record is `timeout` once `timeout_s` is over", "The jobs after it",
              "test_killed.py::test_a_hung_collective"),
        Fault("The launcher is killed", "SIGKILL to `wanreport measure`",
              "No rank and no fork outlives it", "Finished records; no record of half a job",
              "test_killed.py::test_a_killed_launcher"),
        Fault("Ctrl-C, then the same command", "SIGINT to the whole process group",
              "Exit status 130, one line, nothing left running or half written",
              "Finished records, which are not measured again",
              "test_killed.py::test_ctrl_c_and_resume_in_hostile_surroundings"),
        Fault("The kernel of papermill is killed", "SIGKILL to the kernel while a job runs",
              "papermill fails; no rank outlives the kernel", "No record of half a job",
              "test_killed.py::test_a_killed_kernel"),
        Fault("Two commands in one checkout", "two `wanreport measure` of the same jobs at once",
              "Both end well", "Each record is whole", "test_killed.py::test_two_commands_at_once"),
        Fault("The host runs out of memory", "a memory cgroup around rank 1",
              "The record is `failed`, names the rank, and its hint says that memory is likely",
              "The next call measures it again", "test_killed.py::test_a_host_out_of_memory"),
        Fault("The host has too little memory", "fewer free bytes than a job needs",
              "The record is `unsupported` and says how much is missing, before any is taken",
              "What else runs on the host", "measure/test_launch.py"),
        Fault("The device runs out of memory", "another process holds most of the GPU's memory",
              "The record is `oom`, with a hint", "The jobs after it",
              "test_devices.py::test_a_device_out_of_memory"),
        Fault("A GPU that torch does not see", "NVML lists it and torch does not",
              "The record is `unsupported`: no silent rehearsal", "The next call tries again",
              "measure/test_jobs.py"),
        Fault("A copy that nobody waits for", "streams as late as events allow, targets poisoned;"
              " one wait after the other is forgotten", "Each forgotten wait is found",
              "The bits of `resident`", "engines/test_stream.py"),
        Fault("The same on a GPU", "every stream sleeps at random", "Each forgotten wait is found",
              "The bits of `resident`", "test_gpu.py"),
        Fault("20 cycles of attach and detach", "each engine, on two ranks that share weights",
              "Tensors, mappings, descriptors and threads are as many after the last as after the"
              " second", "Memory", "test_cycles.py::test_twenty_cycles_leave_nothing"),
    ],
    "Files": [
        Fault("No room for a record", "a full file system", "One line names the file, status 1",
              "Other records; no part of a file", "test_disk.py::test_no_room_for_a_record"),
        Fault("No room for traces", "a full file system below the record's folder",
              "The record is `ok`; its hint names the trace", "The result",
              "test_killed.py::test_ctrl_c_and_resume_in_hostile_surroundings"),
        Fault("No room for a page", "a full file system", "One line names the file, status 1",
              "Other pages", "test_disk.py::test_no_room_for_a_page"),
        Fault("No room for a prediction", "a full file system", "One line names the file, status 1",
              "Earlier predictions", "test_disk.py::test_no_room_for_a_prediction"),
        Fault("No room for a trace's figures", "a full file system",
              "One line names the file, status 1", "The trace",
              "test_disk.py::test_no_room_for_a_traces_figures"),
        Fault("No room for benchmarks", "a full file system", "One line names the file, status 2",
              "No part of a file; the same call works when there is room",
              "test_disk.py::test_no_room_for_benchmarks"),
        Fault("Files may not be that large", "`ulimit -f`", "One line names the file, status 1",
              "No part of a file", "test_disk.py::test_files_may_not_be_that_large"),
        Fault("No room or no reader behind the output", "`/dev/full`; a pipe that is closed",
              "One line; for the pipe none, and status 0", "-",
              "test_disk.py::test_a_full_disk_or_a_reader_that_has_enough_behind_the_output"),
        Fault("A full `/dev/shm`", "a full file system there", "Nothing: weights do not lie there",
              "The result", "test_killed.py::test_ctrl_c_and_resume_in_hostile_surroundings"),
        Fault("A full `/dev/shm` under NCCL", "the same, on two GPUs without peer access",
              "The reason names the file in `/dev/shm`", "The jobs after it",
              "test_devices.py::test_a_full_dev_shm"),
        Fault("Damaged records", "cut, empty, zeros, another JSON, a wrong type",
              "All are named at once, status 1", "Every record stays as it is",
              "test_disk.py::test_damaged_records"),
        Fault("Damaged benchmarks", "each key removed or wrong", "File and key are named",
              "Every file stays as it is", "records/test_files.py"),
        Fault("Damaged traces", "cut or changed at any place, bombs, no trace at all",
              "All complete events are read, and what is missing is said", "The events before it",
              "traces/test_readers.py"),
        Fault("A damaged checkpoint", "files missing, cut, of Git LFS, scaled, not finite",
              "The record is `unsupported` or `non-finite` and names each file", "-",
              "model/test_checkpoint.py"),
    ],
    "Pages": [
        Fault("A cell raises, a notebook is killed", "an error and SIGKILL in a notebook's cell",
              "That page says what failed, status 1", "All other pages; the next call makes only"
              " the failed ones", "test_failing_pages.py::test_a_page_that_fails"),
        Fault("A signal while a page is made", "SIGTERM",
              "Status 143; nothing that a cell began runs on", "No part of a page",
              "test_failing_pages.py::test_a_signal_while_a_page_is_made"),
    ],
    "Surroundings": [
        Fault("What a cluster leaves around", "a TMPDIR too long for a socket, an interface that is"
              " not here, `LC_ALL=C`", "Nothing", "The result",
              "test_killed.py::test_ctrl_c_and_resume_in_hostile_surroundings"),
        Fault("A read-only checkout, a user without a name", "a read-only mount, a user namespace,"
              " no HOME", "One line names the folder; with a folder of one's own all works",
              "-", "test_disk.py::test_a_user_without_a_name_in_a_checkout_that_is_read_only"),
        Fault("A locale that knows few letters", "reads and writes that name no encoding",
              "There are none", "Every letter",
              "test_fault_table.py::test_every_read_and_write_names_its_encoding"),
    ],
    "On a cluster": [
        Fault("Tasks fail, are cancelled, or see no GPU", "`scancel`, `timeout_s`, an unreadable"
              " file beside it", "Slurm's state, the record and the index agree",
              "Results; the index job", "test_slurm_real.py"),
        Fault("The time limit", "a task longer than `--time`",
              "The record is `failed` and says that it was ended from outside", "Earlier results",
              "test_cluster.py::test_the_time_limit"),
        Fault("A task is requeued", "`scontrol requeue` while it measures",
              "It measures again and ends well; once there is a record it measures nothing",
              "The record", "test_cluster.py::test_requeue"),
        Fault("An array task dies", "SIGKILL to its kernel",
              "That task ends FAILED", "The other tasks",
              "test_cluster.py::test_a_dead_array_task"),
        Fault("A checkpoint is missing", "a folder that is not there",
              "The task ends FAILED; page and index name the folder", "-",
              "test_cluster.py::test_a_missing_checkpoint_has_a_page"),
        Fault("More GPUs than a node has", "a job that no node can take",
              "`slurm/submit.sh` says so", "Nothing is queued",
              "test_cluster.py::test_more_gpus_than_a_node_has"),
        Fault("Ranks on two nodes", "two `slurmd` on one machine",
              "One host store a node", "The bits of one node",
              "test_cluster.py::test_ranks_on_two_nodes"),
    ],
}  # fmt: skip
HEAD = """# Faults

What may go wrong, what is then seen, and what is never lost. Each row is a test that brings the
fault about from outside. `make test` runs those that take seconds, `make faults` the others;
a test that needs a GPU, Slurm or its own file system is skipped, with the reason, where there is
none.
"""


def markers(test: str) -> set[str]:
    """The markers of a test in this folder; empty for a file elsewhere."""
    file, _, name = test.partition("::")
    if not name:
        return {"gpu"} & {file.removeprefix("test_").removesuffix(".py")}
    tree = ast.parse((TESTS / "faults" / file).read_text("utf-8"))
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    whole = [node for node in tree.body if isinstance(node, ast.Assign)
             if ast.unparse(node.targets[0]) == "pytestmark"]  # fmt: skip
    said = " ".join(map(ast.unparse, [*found[name].decorator_list, *whole]))
    return {mark for mark in ("faults", "gpu") if f"mark.{mark}" in said}


def page() -> str:
    """docs/faults.md."""
    parts = [HEAD]
    for title, faults in FAULTS.items():
        parts.append(f"## {title}\n")
        parts.append(
            "| fault | how it is brought about | what is seen | what is kept | tested by |"
        )
        parts.append("|---|---|---|---|---|")
        for each in faults:
            marks = markers(each.test)
            when = "`make faults`" if "faults" in marks else "`make test`"
            when += ", on a GPU" * ("gpu" in marks)
            file = each.test.partition("::")[0]
            where = f"tests/{'faults/' * ('::' in each.test)}{file}"
            cells = [*each[:4], f"{when}: [{file}](../{where})"]
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE.relative_to(TESTS.parent), file=sys.stderr)
