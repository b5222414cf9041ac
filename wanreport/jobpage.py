"""What the page of a job says, as tables and sentences made from its record.

The record may be that of a job that failed early: what it lacks is said or left out. A table of
time or memory raises :class:`~wanreport.answers.NotAnswerable` for a rehearsal. Everything that
came from outside is escaped before it becomes Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .answers import (
    COUNTERS,
    MEMORY_KEYS,
    STATUS_WORDS,
    Budget,
    Moved,
    NotAnswerable,
    Record,
    budgets,
    clean_budget,
    counters_agree,
    counters_derived,
    engine_name,
    extrapolation,
    file_name,
    full_scale_or_refuse,
    get,
    gpu_state,
    is_full_scale,
    iteration_names,
    iterations,
    iterations_or_refuse,
    job_name,
    latents,
    moved,
    peak_memory,
    ranks,
    repeats,
    sampled,
    steps_run,
    switch_step,
)
from .local import commit
from .record import is_rehearsal
from .tables import (
    Cell,
    Column,
    Kind,
    code,
    counted,
    facts_table,
    gibibytes,
    gigabytes,
    html_table,
    markdown,
    plain,
    seconds,
    significant,
    tick,
)

# Tables -------------------------------------------------------------------------------------------


def moved_table(record: Record) -> str:
    """Return the counters of each iteration beside the closed formula, as HTML."""
    cells: dict[str, dict[str, Moved]] = {}
    for one in moved(record):
        cells.setdefault(one.counter, {})[one.iteration] = one
    names = iteration_names(iterations(record))
    zero = [c for c, found in cells.items() if not any(any(m.measured) for m in found.values())]
    rows: list[dict[str, object]] = []
    for counter, found in cells.items():
        if counter in zero and all(m.agrees is not False for m in found.values()):
            continue
        is_bytes = counter.endswith("_bytes")
        row: dict[str, object] = {"what": COUNTERS[counter]}
        for name, one in found.items():
            row[name] = _across_ranks(one.measured, is_bytes)
            row[f"{name} formula"] = _across_ranks(one.formula, is_bytes, derived=True)
        agree = [one.agrees for one in found.values()]
        row["agrees"] = tick(None if None in agree else all(agree))
        rows.append(row)
    columns = [Column("what", "per rank", numeric=False)]
    for name in names:
        columns += [Column(name, name), Column(f"{name} formula", "by formula")]
    note = "Two values a–b are the smallest and the largest over the ranks. "
    if zero:
        note += f"Zero in all iterations: {', '.join(COUNTERS[c] for c in zero)}. "
    note += (
        "This engine hides its copies inside the library, so its counts are derived from the "
        "gathers that it reported; they cannot disagree with the formula."
        if counters_derived(record)
        else "The formula needs only sizes, steps and branches."
    )
    return html_table(
        rows,
        [*columns, Column("agrees", "equal", numeric=False)],
        caption=f"What engine {engine_name(record)} moved and waited for, per iteration",
        note=note,
        kind="derived" if counters_derived(record) else "measured",
    )


def _across_ranks(
    values: Sequence[int] | None, is_bytes: bool, *, derived: bool = False
) -> Cell | None:
    if not values:
        return None
    low, high = min(values), max(values)
    write = gigabytes if is_bytes else plain
    text = write(low) if low == high else f"{write(low)}–{write(high)}"
    title = f"{low:,} to {high:,}" if low != high else f"{low:,}"
    return Cell(
        high,
        text=text,
        kind="derived" if derived else None,
        title=f"{title} bytes" if is_bytes else title,
    )


def budget_table(record: Record) -> str:
    """Return where the time of each iteration went, as HTML."""
    found = budgets(record)

    def row(
        what: str, read: Callable[[Budget], float | None], *, whole: bool = False
    ) -> dict[str, object]:
        kind: Kind | None = "derived" if whole and sampled(record) else None
        values = {name: read(b) for name, b in found.items()}
        return {"what": what} | {
            name: None if value is None else Cell(value, text=seconds(value), kind=kind)
            for name, value in values.items()
        }

    steady: dict[str, object] = {name: b.steady.text("s") for name, b in found.items()}
    rows = [
        row("first step", lambda b: b.first),
        row(f"switch step (index {switch_step(record)})", lambda b: b.switch),
        {"what": "other steps, median [95 % interval]"} | steady,
        row("other steps, together", lambda b: b.steady_total, whole=True),
        row("all steps", lambda b: b.denoise, whole=True),
        row("decode", lambda b: b.decode),
        row("iteration", lambda b: b.total, whole=True),
    ]
    return html_table(
        rows,
        [Column("what", "part", numeric=False), *(Column(name, name) for name in found)],
        caption="Where the time went",
        note="Each step counts with its slowest rank. The interval is distribution-free and takes "
        f"the steps of one iteration as independent samples. {extrapolation(record)}".rstrip(),
    )


def memory_table(record: Record) -> str:
    """Return the peaks of memory by iteration, as HTML."""
    full_scale_or_refuse(record, "The memory use")
    found = iterations_or_refuse(record)
    rows: list[dict[str, object]] = []
    for key, what in MEMORY_KEYS.items():
        row: dict[str, object] = {"what": what}
        for name, iteration in zip(iteration_names(found), found, strict=True):
            values = [r[key] for r in iteration.get("memory") or [] if r and r.get(key) is not None]
            if (top := max(values, default=None)) is not None:
                row[name] = Cell(top, text=gigabytes(top), title=gibibytes(top))
        rows.append(row)
    return html_table(
        rows,
        [
            Column("what", "peak of the fullest rank", numeric=False),
            *(Column(name, name) for name in iteration_names(found)),
        ],
        caption="Peak memory",
        note="GB is 10⁹ bytes; the tooltip has GiB, which is 2³⁰ bytes.",
    )


def bits_table(record: Record) -> str:
    """Return each iteration's digests, and whether they equal the first one, as HTML."""
    found = iterations_or_refuse(record)
    rows: list[dict[str, object]] = []
    for name, iteration in zip(iteration_names(found), found, strict=True):
        row: dict[str, object] = {"iteration": name}
        for what in ("latents", "video"):
            digest = iteration.get(f"{what}_sha256")
            row[what] = Cell(digest, text=digest[:16], title=digest) if digest else None
        first, this = next(iter(latents(record)), None), iteration.get("latents_sha256")
        row["same"] = tick(first == this if first and this else None)
        if len(iteration["steps"]) < steps_run(record):
            row["same"] = Cell(None, text=f"ran {counted(len(iteration['steps']), 'step')} only")
        rows.append(row)
    return html_table(
        rows,
        [
            "iteration",
            Column("latents", "latents, SHA-256", numeric=False),
            Column("video", "decoded video, SHA-256", numeric=False),
            Column("same", "latents equal the first", numeric=False),
        ],
        caption="Bits of the result",
        note="The first 16 hexadecimal digits; the tooltip has all.",
    )


def request_table(record: Record) -> str:
    """Return what the job asked for and what size really ran, as HTML."""
    job, model = get(record, "job", default={}), get(record, "model", default={})

    def size(source: Mapping[str, Any]) -> str | None:
        if not all(source.get(key) for key in ("width", "height", "num_frames")):
            return None
        return f"{source['width']}×{source['height']}, {counted(source['num_frames'], 'frame')}"

    ran, steps, free = iterations(record), job.get("num_inference_steps"), Cell(None, text="")
    seen = len(ran[0]["steps"][0].get("seconds") or []) if ran else 0
    rows: list[tuple[str, object, object]] = [
        ("engine", job.get("engine"), get(record, "engine", "name")),
        ("ranks", job.get("num_gpus"), seen or None),
        ("video", size(job), size(model)),
        ("steps", steps, sampled(record) or steps_run(record) or None),
        ("blocks per expert", free, model.get("num_layers")),
        ("tokens", free, model.get("tokens")),
        ("weights", job.get("checkpoint") or "random, exact shapes", model.get("weights")),
        ("bytes per block", free, _bytes_cell(model.get("block_bytes"))),
        ("bytes per expert", free, _bytes_cell(model.get("expert_bytes"))),
    ]
    return html_table(
        [dict(zip(("what", "asked", "ran"), row, strict=True)) for row in rows],
        [
            Column("what", "what", numeric=False),
            Column("asked", "asked for", numeric=False),
            Column("ran", "what ran", numeric=False),
        ],
        caption="What was asked for, and what ran",
        kind=None,
    )


def _bytes_cell(count: int | None) -> Cell | None:
    return None if count is None else Cell(count, text=gigabytes(count), title=f"{count:,} bytes")


def machine_table(record: Record) -> str:
    """Return the machine and the software that made the record, as HTML."""
    machine, software = get(record, "machine", default={}), get(record, "software", default={})
    memory, state = machine.get("gpu_memory_bytes"), gpu_state(record)
    host = machine.get("host_memory_bytes")
    rows: list[tuple[str, object]] = [
        ("machine class", machine.get("class")),
        ("GPU", machine.get("gpu_name")),
        ("GPU memory", None if memory is None else gibibytes(memory)),
        ("GPU under load", state and state.text),
        ("boards", state and ", ".join(state.boards)),
        ("interconnect", machine.get("interconnect")),
        ("PCIe, at most", _pcie(machine)),
        *(
            (f"{where}, {how} host memory", _link(machine, key))
            for key, (where, how) in LINKS.items()
        ),
        ("processor", machine.get("cpu_model")),
        ("host memory", None if host is None else gibibytes(host)),
        ("driver", machine.get("driver")),
        ("NCCL settings", _settings(machine.get("nccl"))),
        ("NCCL transport", ", ".join(machine.get("transport") or []) or None),
        *((name, software.get(name)) for name in ("python", "torch", "diffusers", "cuda", "nccl")),
        ("wanreport", software.get("wanreport")),
        ("commit", commit(software)),
        ("started", record.get("started_at")),
        ("record", file_name(record)),
    ]
    if machine.get("device") == "cpu":
        rows = [(what, value) for what, value in rows if what in ANYWHERE]
    return facts_table(rows, caption="Machine and software")


LINKS = {
    "h2d_pinned": ("host to device", "pinned"),
    "h2d_pageable": ("host to device", "pageable"),
    "d2h_pinned": ("device to host", "pinned"),
    "d2h_pageable": ("device to host", "pageable"),
}

ANYWHERE = {"machine class", "processor", "host memory", "python", "torch", "diffusers",
            "wanreport", "commit", "started", "record"}  # fmt: skip
"""Rows of the machine's table that apply where there is no GPU, too."""


def _pcie(machine: Mapping[str, Any]) -> str | None:
    generation, width = get(machine, "pcie", "generation"), get(machine, "pcie", "width")
    return f"generation {generation}, {width} lanes" if generation and width else None


def _link(machine: Mapping[str, Any], key: str) -> str | None:
    """Return a measured bandwidth as words: one GPU alone, and each of several at once."""
    alone = get(machine, "link", f"{key}_gb_s")
    together = get(machine, "link", f"{key}_together_gb_s")
    if alone is None:
        return None
    several = len(get(machine, "link", "samples", key, "together", default=[])) > 1
    at_once = f"; {significant(together, 4)} GB/s each with all at once" if several else ""
    return f"{significant(alone, 4)} GB/s{at_once}"


def _settings(nccl: object) -> str | None:
    if not isinstance(nccl, Mapping):
        return None
    return ", ".join(f"{key}={nccl[key]}" for key in sorted(nccl)) or "none set"


# Sentences ----------------------------------------------------------------------------------------


def rehearsal_notice(record: Record) -> str:
    """Return the sentence that opens every page of a rehearsal, as Markdown."""
    layers = get(record, "model", "num_layers")
    size = f"{counted(layers, 'block')} instead of a full expert, " if layers else ""
    machine = get(record, "machine", "class", default="this machine")
    return (
        f"**Rehearsal:** the same code and architecture at a small size ({size}"
        f"{counted(ranks(record), 'rank')}; {markdown(machine)}). It answers for the schedule, "
        "counters, bytes and bits; it says nothing about time, memory or overlap on GPUs."
    )


def title(record: Record) -> str:
    """Return the page's heading as Markdown; of a rehearsal or a failure its first words say so."""
    if iterations(record):
        prefix = "Rehearsal: " if is_rehearsal(record) else ""
    else:
        # Only a job that was tried has a machine.
        status = str(record.get("status")) if get(record, "machine") else ""
        prefix = f"{STATUS_WORDS.get(status, 'did not run').capitalize()}: "
    return f"# {prefix}{markdown(job_name(record))}"


def first_screen(record: Record) -> str:
    """Return what a reader must know first: asked, came out, and how far to trust it (Markdown)."""
    parts = [rehearsal_notice(record)] if is_rehearsal(record) and iterations(record) else []
    if record.get("status") != "ok":
        parts.append(failure(record))
    parts += [f"**Asked.** {asked(record)}", f"**Came out.** {headline(record)}"]
    parts.append(f"**Trust.** {trust(record)}")
    return "\n\n".join(parts)


def failure(record: Record) -> str:
    """Return status, reason and hint of a job that did not finish, as Markdown."""
    words = STATUS_WORDS.get(str(record.get("status")), str(record.get("status")))
    reason = markdown(record.get("reason") or "no reason was recorded")
    hint = record.get("hint")
    return f"**This job {markdown(words)}.** {reason}" + (
        f"\n\n**What to do.** {markdown(hint)}" if hint else ""
    )


def asked(record: Record) -> str:
    """Return the question of the job as Markdown."""
    job = get(record, "job", default={})
    purpose = markdown(job.get("purpose") or "")
    sentence = f"{purpose}{'' if purpose[-1] in '.?!' else '.'} " if purpose else ""
    stands_for = job.get("baseline_job")
    return (
        f"{sentence}Engine {code(job.get('engine'))} on {counted(ranks(record), 'rank')}: "
        f"{job.get('width')}×{job.get('height')}, "
        f"{plain(job.get('num_frames'))} frames, {plain(job.get('num_inference_steps'))} steps"
        + (f" (a sample of {job['sampled_steps']} is run)" if job.get("sampled_steps") else "")
        + f"{', with' if job.get('cfg') else ', without'} classifier-free guidance."
        + (f" It stands for the baseline's cluster job {stands_for}." if stands_for else "")
    )


def headline(record: Record) -> str:
    """Return the one result of the job as Markdown: time at full scale, facts of a rehearsal."""
    if not iterations(record):
        return f"No iteration: the job {STATUS_WORDS.get(str(record.get('status')), 'ended')}."
    if not is_full_scale(record):
        return f"{schedule_sentence(record)} {counters_sentence(record)} {bits_sentence(record)}"
    try:
        clean = clean_budget(record)
    except NotAnswerable as why:
        return markdown(why)
    memory = peak_memory(record)["allocated_bytes"]
    cold, planning = get(record, "cold_start_s"), get(record, "engine", "plan", "planning_s")
    return (
        f"{clean.steady.text('s')} per step (median [95 % interval] of the steps that are neither "
        f"first nor switch, clean iterations); all steps {seconds(clean.denoise)}, "
        f"the whole iteration {seconds(clean.total)}"
        + (f", both extrapolated from {sampled(record)}. " if clean.left_out else ". ")
        + (f"Peak allocated GPU memory {gigabytes(memory)}. " if memory else "")
        + (f"From loading weights to the end of the first step {seconds(cold)}" if cold else "")
        + (f", {seconds(planning)} of it for the plan." if planning else "." if cold else "")
    )


def trust(record: Record) -> str:
    """Return what stands behind the page's numbers, as Markdown: scale, n, checks, code state."""
    found = iterations(record)
    kinds = ", ".join(iteration_names(found)) or "none"
    sentences = [
        ("Full scale on GPUs" if is_full_scale(record) else "Not full scale on GPUs")
        + f"; {counted(len(found), 'iteration')} ({kinds})."
    ]
    if found and is_full_scale(record):  # a rehearsal's headline has said it
        agree, same = counters_agree(record), repeats(record)
        if agree is not None:
            sentences.append(
                "All counters equal the closed formula."
                if agree
                else "**Some counters differ from the closed formula.**"
            )
        if same is not None:
            sentences.append(
                "All iterations ended in the same bits."
                if same
                else "**The iterations did not end in the same bits.**"
            )
    if get(record, "model", "weights") == "random":
        shapes = " of the exact shapes" if get(record, "job", "scale") == "a14b" else ""
        sentences.append(f"Random weights{shapes}: the video shows noise.")
    if get(record, "software", "git_dirty"):
        sentences.append("The code had uncommitted changes.")
    return " ".join(sentences)


def schedule_sentence(record: Record) -> str:
    """Return which steps ran with which expert, as Markdown."""
    steps = len(get(record, "schedule", "timesteps", default=[]))
    at = switch_step(record)
    if not steps:
        return "No schedule was recorded."
    ran = f" Of these {sampled(record)} ran." if sampled(record) else ""
    if at is None:
        return f"{counted(steps, 'step')}, all with one expert.{ran}"
    return (
        f"{counted(steps, 'step')}; the switch to the low-noise expert is at step index {at} "
        f"(step {at + 1} counted from one).{ran}"
    )


def counters_sentence(record: Record) -> str:
    """Return how the counters compare with the closed formula, as Markdown."""
    if counters_derived(record):
        return "Its copies are hidden in the library; their counts are derived, not counted."
    agree = counters_agree(record)
    if agree is None:
        return "Its counters have no closed formula to compare with."
    if agree:
        return "Every counter on every rank equals the closed formula."
    wrong = sorted({COUNTERS[row.counter] for row in moved(record) if row.agrees is False})
    return f"**Counters differ from the closed formula: {', '.join(wrong)}.**"


def bits_sentence(record: Record) -> str:
    """Return whether the iterations agree bit for bit, as Markdown."""
    found = latents(record)
    if len(found) < 2:
        return f"{counted(len(found), 'iteration')} left latents: nothing to compare within a job."
    if len(set(found)) == 1:
        return f"All {len(found)} iterations ended in bit-identical latents."
    return f"**The {len(found)} iterations ended in {len(set(found))} different latents.**"


def sglang_sentence(record: Record) -> str:
    """Return what SGLang would have run with this job's flags, with the rules, as Markdown."""
    resolved = get(record, "sglang", default={})
    if not resolved:
        return "The flags were not resolved before the job ended."
    engine = resolved.get("engine")
    lines = [
        f"SGLang would have run the engine {code(engine)}: "
        if engine
        else "SGLang has no engine of this project for these flags: "
    ]
    lines[0] += (
        f"layerwise offload {_on(resolved.get('layerwise'))}, "
        f"CPU offload {_on(resolved.get('cpu_offload'))}, FSDP {_on(resolved.get('fsdp'))}"
    )
    if resolved.get("layerwise"):
        layers = counted(int(resolved.get("prefetch_layers") or 0), "layer")
        lines[0] += f", {layers} prefetched (prefetch size {resolved.get('prefetch_size')})"
    lines[0] += "."
    steps = resolved.get("steps") or []
    lines += ["", *(f"1. {markdown(step)}" for step in steps)] if steps else []
    return "\n".join(lines)


def _on(flag: object) -> str:
    return "on" if flag else "off"


def settings_sentence(record: Record) -> str:
    """Return how the model path became model settings, as Markdown."""
    model = get(record, "model", default={})
    path = get(record, "job", "model_path", default="")
    if not model.get("config"):
        return f"The path {code(path)} was not resolved before the job ended."
    how = {
        "exact": "an exact match in the registry",
        "partial": "a match of its last component in the registry",
        "detector": "a detector, because neither the path nor its last component matched",
    }.get(str(model.get("how")), str(model.get("how")))
    boundary = model.get("boundary_ratio")
    return (
        f"The path {code(path)} resolved to {code(model['config'])} by {markdown(how)}. "
        f"That gives flow shift {model.get('flow_shift')}, "
        f"boundary ratio {boundary if boundary is not None else 'none'}, "
        f"guidance {model.get('guidance_scale')} (high noise) and "
        f"{model.get('guidance_scale_2')} (low noise)."
    )


def traces_sentence(record: Record) -> str:
    """Return where the traces of the profiled iteration lie and how to open them, as Markdown."""
    traces = get(record, "traces", default=[])
    if not traces:
        return "No trace was written."
    lines = ["The profiled iteration wrote a trace per rank, beside the record:", ""]
    for trace in traces:
        digest = str(trace.get("sha256") or "")
        lines.append(
            f"* rank {plain(trace.get('rank'))}: {code(trace.get('path'))}, "
            f"{gigabytes(trace.get('bytes'))}"
            + (f", SHA-256 {code(digest[:16])}…" if digest else "")
        )
    lines += [
        "",
        "Open one in Perfetto (ui.perfetto.dev, which reads the file in the browser) or in "
        f"{code('chrome://tracing')}; TensorBoard's profiler plugin reads it too.",
    ]
    return "\n".join(lines)


def reproduce(record: Record) -> str:
    """Return how to run the job again, as Markdown with the whole parameters file."""
    import json  # the JSON form of a flat mapping is YAML too

    job = dict(get(record, "job", default={}))
    name = job_name(record)
    lines = "\n".join(f"    {key}: {json.dumps(value)}" for key, value in job.items())
    return (
        f"Save these lines as {code(f'{name}.yaml')} and run {code(f'wanreport run {name}.yaml')}."
        f"\n\n{lines}"
    )
