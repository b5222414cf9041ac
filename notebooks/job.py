# ---
# jupyter:
#   jupytext:
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
name = None
engine = None
num_gpus = None
purpose = ""
baseline_job = None
model_path = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
checkpoint = None
scale = "auto"
height = 720
width = 1280
num_frames = 81
num_inference_steps = 27
sampled_steps = None
flow_shift = None
boundary_ratio = None
guidance_scale = None
guidance_scale_2 = None
cfg = True
decode = True
prompt = "A red panda rides a bicycle along a canal in the rain."
negative_prompt = ""
seed = 0
dtype = "bfloat16"
compile = False
vram_budget_gb = None
transfer = "bf16"
warmup_iterations = 1
clean_iterations = 1
profile = True
timeout_s = 1800
dit_layerwise_offload = None
dit_cpu_offload = None
use_fsdp_inference = False
enable_cfg_parallel = False
dit_offload_prefetch_size = 0.0
cache_dit = False
machine = None  # a folder of results/: whose record to show; the best one by default

# %%
from wanreport.report.notebook import setup

job = setup(globals())

# %%
import json
import os
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from wanreport.analysis.frames import of_record
from wanreport.analysis.overlap import timeline
from wanreport.jobs.job import resolve_job
from wanreport.measure.jobs import NO_MEASURING
from wanreport.planner.plan import describe
from wanreport.records.files import parse_record, read_json
from wanreport.records.project import project_root
from wanreport.records.record import new_record
from wanreport.report.figures import DASHES, beside, rows, timelines
from wanreport.report.notebook import Stop, frames_of, md, measure, page, show, table
from wanreport.report.style import FALLBACK, INK, MARKERS, NARROW, WIDTH, colour
from wanreport.words import counted, gibibytes, interval, plain, ratio, seconds, share, significant
from wanreport.words import gigabytes as gb

run = measure(job, machine=machine)  # measures only where there is no record yet
committed = run is not None and not run.startswith("results/local/")
frames = frames_of(["results"] if committed else ["results", "results/local"])

# %%
root = project_root()
if run is not None:
    record, me = parse_record(root / run, read_json(root / run, "")), frames.runs.loc[run]
else:  # what it would be, with a hint how to make it
    file = next((p.relative_to(root) for p in root.glob(f"params/*/{job.name}.yaml")), Path())
    hint = f"On a machine with {counted(job.num_gpus, 'GPU')}, run: wanreport run {file}"
    resolved = resolve_job(job, gpus=job.num_gpus)
    record = parse_record(file, new_record(resolved, reason="This job has no record.", hint=hint))
    me = of_record(record).runs.iloc[0]

# %%
tried = bool(record.machine.class_)
steps, ok = frames.steps[frames.steps.run == run], me.status == "ok"
timed = len(steps) > 0 and not me.rehearsal  # the times of a rehearsal are no results

resident = frames.runs.loc[me.reference] if pd.notna(me.reference) else None
held = resident is not None and resident.run != run
runs = frames.runs[frames.runs.group == me.group] if run else frames.runs[:0]
alike = runs[runs.latest & ((runs.status == "ok") | (runs.run == run))] if run else runs
alike = alike.assign(name=alike["name"].mask(alike["name"].duplicated(keep=False), alike.job))
again = runs[(runs.job == me.job) & (runs.status == "ok") & ~runs.rehearsal] if run else runs
apart = share(again.step_s.max() / again.step_s.min() - 1) if len(again) > 1 else ""

# %%
state = "rehearsal" if ok and me.rehearsal else me.status if tried else "not measured"
state = {"ok": "", "oom": "out of memory"}.get(state, state)
opening = f"{state.capitalize()}: " if state else ""
md(f"# {opening}{me.job}" + f" on {plain(me.machine)}" * tried)

# %%
if not ok:
    md(f"""
**There is no result.** {plain(me.reason or "No reason was recorded.")}

**What to do.** {plain(me.hint or "Read the log of the run, then run the job again.")}
""")
elif me.rehearsal:
    md(f"""
**This is a rehearsal.** The same code ran the same architecture at a small size:
{counted(me.blocks, "block")} instead of a full expert, {counted(me.gpus, "rank")},
{plain(me.machine)}. It answers for schedule, counters, bytes and bits. It says nothing about time,
memory or overlap on GPUs.
""")

# %%
asks = f"What does `{me['name']}` cost a step, over weights that never leave the GPU?"
if me.engine == "resident":
    asks = "How long is a step with all weights on the GPU? All other engines are held against it."
md(f"{plain(job.purpose)} **{asks}**")

# %%
if ok and timed:
    step = interval(me.step_s, me.step_low_s, me.step_high_s, me.step_n)
    over = whole = bits = ""
    if held:
        claim = "too few steps for an interval" if me.claim == "no interval" else me.claim
        over = f": {ratio(me.overhead)} over `resident`, {claim}"
        if pd.isna(me.decode_s) == pd.isna(resident.decode_s):
            whole = f" ({ratio(me.end_to_end_s / resident.end_to_end_s - 1)})"
        bits = {True: "Its latents have the bits of `resident`'s.",
                False: "**Its latents differ from `resident`'s.**"}.get(me.same_bits, "")  # fmt: skip
    decoding = "without" if pd.isna(me.decode_s) else "with"
    md(f"""
**A steady step takes {step}{over}.** A clean run of the whole schedule {decoding} decoding takes
{seconds(me.end_to_end_s)}{whole}; a GPU has at most {gb(me.allocated_bytes)} allocated
({gb(me.reserved_bytes)} reserved). {bits}
""", "answer")  # fmt: skip
elif ok:
    formula = {True: "equal the", False: "**differ from the**"}.get(me.formula_ok, "have no")
    same = {True: "All iterations end in the same bits.",
            False: "**Its iterations end in different bits.**"}  # fmt: skip
    md(f"**The engine's counters {formula} closed formula.** {same.get(me.repeats, '')}", "answer")


# %%
def mark_switch(axes, steps):
    """Mark where the second expert begins, and name both."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    at = steps.step[steps.expert == "low_noise"].min() - 0.5
    if steps.step.min() < at:
        axes.axvline(at, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        for text, away, side in (("high", -4, "right"), ("low", 4, "left")):
            axes.annotate(f"{text}-noise expert", (at, 1), xytext=(away, -2), ha=side, va="top",
                          textcoords="offset points", xycoords=("data", "axes fraction"))  # fmt: skip


def level(axes, x, y, text, **where):
    """Draw a dashed line across, and say what it is."""
    axes.axhline(y, color=INK, linewidth=0.9, linestyle=DASHES)
    axes.annotate(text, (x, y), textcoords="offset points", **where)


# %%
def draw_steps(steps, clean):
    """Draw the seconds of each step that ran: clean iterations filled, others hollow."""
    figure, axes = plt.subplots(figsize=(NARROW, 3.4))
    top, paint, marker = 1.15 * clean.seconds.max(), colour(me.engine), MARKERS.get(me.engine, "o")
    kind = steps.kind.replace("warmup", "warm-up")
    shown = steps.assign(kind=kind, shown_s=steps.seconds.clip(upper=top))
    sns.scatterplot(shown, x="step", y="shown_s", hue="kind", style="kind", s=42, edgecolor=paint,
                    palette={"warm-up": "none", "clean": paint, "profiled": "none"}, linewidth=1,
                    markers={"warm-up": marker, "clean": marker, "profiled": "*"}, ax=axes)  # fmt: skip
    for row in shown[shown.seconds > top].itertuples():
        beside(axes, row.step, top, f"{row.kind} {row.seconds:#.3g} s ↑", 8)
    places = {"first": ((-4, 7), "bottom"), "switch": ((-4, -18), "top"),
              "steady": ((8, 2), "bottom")}  # fmt: skip
    for role, some in clean.groupby("role"):
        away, align = places[role]
        axes.annotate(f"{role} {some.seconds.median():#.3g} s", xytext=away, va=align,
                      xy=(some.step.max(), some.seconds.median()), textcoords="offset points")  # fmt: skip
    mark_switch(axes, steps)
    axes.set(xlabel="step", ylabel="seconds, slowest rank", ylim=(0, 1.12 * top),
             xlim=(-0.6, max(steps.step.max() + 2.5, me.steps_whole)))  # fmt: skip
    sns.move_legend(axes, "lower left", bbox_to_anchor=(0, 1), ncols=3, title=None)
    return figure, axes


# %%
if timed:
    caption = f"Each step of {me['name']}, as its slowest rank saw it."
    clean = steps[steps.kind == "clean"] if "clean" in set(steps.kind) else steps
    figure, axes = draw_steps(steps, clean)
    if held:
        room = 4 * me.resident_s > 1.15 * clean.seconds.max()  # below the line
        away = (0, -14 if room else 4)
        level(axes, 4, me.resident_s, f"resident {me.resident_s:#.3g} s", xytext=away)
        gap = seconds(abs(me.step_s - me.resident_s), 2)
        caption = {
            "slower": f"A steady step of {me['name']} is {gap} longer than resident's.",
            "faster": f"A steady step of {me['name']} is {gap} shorter than resident's.",
            "within noise": f"A steady step of {me['name']} is within noise of resident's.",
        }.get(me.claim, f"{me.step_n} steady steps are too few to tell {me['name']} from resident.")
    show(figure, caption)

# %%
if timed and ok:
    ran = "All steps of the schedule ran."
    if me.steps_run < me.steps_whole:
        ran = (f"{me.steps_run} of the schedule's {me.steps_whole} steps ran; each of the others "
               "counts as the mean steady one.")  # fmt: skip
    if apart:
        ran += f" The job ran {len(again)} times, with steps up to {apart} apart."
    whose = "Boards and clocks were not recorded"
    if me.boards:
        whose = f"{'Board' if me.gpus == 1 else 'Boards'} {' and '.join(me.boards)} ran at "
        whose += f"{me.sm_mhz:,.0f} MHz"
    reference = ""
    if held:
        where = "the same" if me.same_boards else "other boards, or on unknown ones"
        reference = f"; `resident` ran on {where}, {seconds(me.resident_s)} a step"
        if me.claim != "no interval":
            reference += f". A difference below {share(me.allowance)} is not claimed"
    counted_ok = {True: "All counters equal the closed formula.",
                  False: "**Counters differ from the closed formula.**"}  # fmt: skip
    md(f"""
**How far to trust it.** {ran} {whose}{reference}. The weights are {plain(record.model.weights)}.
{counted_ok.get(me.formula_ok, "")}
""", "trust")  # fmt: skip

# %% [markdown]
# ## What was asked
#
# The job's parameters, and the sizes that really ran. The two differ where the machine had too few
# GPUs for the real thing, or where the job ended early.

# %%
model, size = record.model.model_dump(), "{width}×{height}, {num_frames} frames"
videos = [size.format(**of) if of.get("width") else None for of in (record.job, model)]
ranks = [len(step.seconds) for each in record.iterations for step in each.steps]
asked = pd.DataFrame([
    ("engine", record.job.get("engine"), record.engine.name),
    ("GPUs or ranks", record.job.get("num_gpus"), max(ranks, default=None)),
    ("video", *videos),
    ("denoising steps", record.job.get("num_inference_steps"), len(record.schedule.timesteps) or None),
    ("weights", record.job.get("checkpoint") or "random, exact shapes", model["weights"]),
    ("blocks of an expert", None, model["num_layers"]),
    ("tokens", None, model["tokens"] and f"{model['tokens']:,}"),
    ("size of a block", None, model["block_bytes"] and gb(model["block_bytes"])),
    ("size of an expert", None, model["expert_bytes"] and gb(model["expert_bytes"])),
], columns=["what", "asked", "ran"], dtype=object).dropna(thresh=2)  # fmt: skip
shown = {"what": "what", "asked": "asked for", **({"ran": "ran"} if len(steps) else {})}
table(asked, shown, kind=None, caption="What was asked for, and what ran.")

# %% [markdown]
# ### What SGLang makes of the same flags
#
# The offload flags are SGLang's own. Its version 0.5.9 resolves them by rules, in this order.

# %%
flags = record.sglang or vars(job.sglang())
engine = flags.get("engine")
runs_it = f"SGLang would run what is `{engine}` here." if engine else "No engine here matches them."
md("\n".join([runs_it, "", *(f"1. {plain(step)}" for step in flags.get("steps") or [])]))

# %%
how = {"exact": "as an exact match", "partial": "by the path's last part",
       "detector": "by a detector, as no part of the path matched"}  # fmt: skip
if model.get("config"):
    boundary = "none" if pd.isna(me.boundary_ratio) else f"{me.boundary_ratio:g}"
    md(f"""
SGLang looks model settings up by path. {plain(job.model_path)} gives {plain(model["config"])}
{how.get(model["how"], "")}: flow shift {me.flow_shift:g}, boundary ratio {boundary}, guidance
{model["guidance_scale"]} (high noise) and {model["guidance_scale_2"]} (low noise).
""")

# %% [markdown] tags=["with-output"]
# ## What ran
#
# Steps at or above the boundary use the high-noise expert, the others the low-noise one. The first
# low-noise step is the *switch*: from there on the GPU needs the other expert's weights.

# %%
schedule = pd.DataFrame(enumerate(record.schedule.timesteps), columns=["step", "timestep"])
if len(schedule):
    at = len(schedule) if pd.isna(me.switch_step) else me.switch_step
    schedule["expert"] = (schedule.step >= at).map({True: "low_noise", False: "high_noise"})
    figure, axes = plt.subplots(figsize=(NARROW, 2.8))
    sns.lineplot(schedule, x="step", y="timestep", estimator=None, drawstyle="steps-mid", color=INK,
                 linewidth=0.8, marker="o", markersize=5, markeredgewidth=0, ax=axes)  # fmt: skip
    boundary = 1000 * (me.boundary_ratio or 0)
    level(axes, len(schedule) - 1, boundary, f"boundary {boundary:g}", ha="right", xytext=(0, 3))
    mark_switch(axes, schedule)
    axes.set_ylim(0, 1.18 * schedule.timestep.max())
    show(figure, "All steps use one expert." if pd.isna(me.switch_step) else
         f"The experts switch at step {at} of {len(schedule)}, counted from 0.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Time
#
# A warm-up iteration comes first. The clean iteration gives the times. The profiled one gives the
# timeline; its times do not count, as the profiler takes time too.

# %%
PARTS = {  # of a clean iteration: what they are called, hatch, whether they are not filled
    "first": ("first step", "xxx", False), "switch": ("switch", "+++", False),
    "steady": ("steady steps", "", False), "left": ("steady steps, extrapolated", "///", True),
    "decode": ("decoding", "---", True),
}  # fmt: skip

if timed and ok:
    every = alike.sort_values("end_to_end_s")
    spikes = 1 + every.switch_s.notna()
    steady = every.steps_whole - spikes
    ran = ((every.steps_run - spikes) / steady).astype(float)
    spent = pd.DataFrame({"first": every.first_s, "switch": every.switch_s, "steady": every.steady_s * ran,
                          "left": every.steady_s * (1 - ran), "decode": every.decode_s}).fillna(0)  # fmt: skip
    slow = spent[["first", "switch"]]
    slow = slow[slow.gt(2 * every.steady_s / steady, axis=0)]

# %%
if timed and ok:
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.42 * len(every)))
    tidy, keys = spent.melt(var_name="part", value_name="s", ignore_index=False).reset_index(), []
    sns.histplot(tidy, y="run", weights="s", hue="part", hue_order=[*PARTS][::-1], multiple="stack",
                 shrink=0.62, alpha=1, linewidth=0.8, legend=False, ax=axes)  # fmt: skip
    for some, (part, (text, hatch, hollow)) in zip(axes.containers, PARTS.items(), strict=True):
        for bar, paint in zip(some, every.engine.map(colour), strict=True):
            face, edge = ("none", paint) if hollow else (paint, INK)
            bar.set(facecolor=face, edgecolor=edge, hatch=hatch)
        face = "none" if hollow else FALLBACK
        key = Patch(facecolor=face, edgecolor=INK, label=text, hatch=hatch)
        keys += [key] * any(spent[part])
    for y, (end, high) in enumerate(zip(spent.sum(axis=1), slow.to_dict("records"), strict=True)):
        high = ", ".join(f"{part} {value:.0f}" for part, value in high.items() if value > 0)
        beside(axes, end, y, f"{end:.0f} s" + f" ({high})" * bool(high))
    rows(axes, every.name)
    axes.set(xlabel="seconds", xlim=(0, 1.35 * spent.sum(axis=1).max()))
    axes.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    longest = every.iloc[-1]
    caption = f"From end to end {longest['name']} takes {longest.end_to_end_s:,.0f} s"
    caption += f", the longest of {len(alike)} that did this work here." if len(alike) > 1 else "."
    show(figure, caption)

# %%
if timed:
    parts = steps.pivot_table(index="iteration", columns="role", values="seconds", aggfunc="median")
    parts = parts.reindex(columns=["first", "switch", "steady"]).add_suffix("_s")
    whole = frames.iterations[frames.iterations.run == run].set_index("iteration")
    table(parts.join(whole[["kind", "decode_s", "total_s"]])
          .assign(steps_ran=steps.groupby("iteration").size()),
          {"kind": "iteration", "first_s": "first step", "switch_s": "switch",
           "steady_s": "steady step", "decode_s": "decoding", "steps_ran": "steps that ran",
           "total_s": "in all"},
          caption=f"What each iteration of {me['name']} took.",
          note="A step takes as long as its slowest rank. A steady step is the median of those "
          "that are neither first nor switch.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Memory
#
# Offloading trades GPU memory for host memory, so both belong here. *Allocated* is what tensors
# take, *reserved* what the allocator holds; SGLang reports the latter. Weights are pinned on the
# host, so that copies can run beside everything else.


# %%
def bars(axes, every, what, texts, ends, **look):
    """Draw a bar for each run, with its text where the bar, or what is around it, ends."""
    sns.barplot(every, x=what, y="run", hue="engine", palette={e: colour(e) for e in every.engine},
                saturation=1, width=0.6, errorbar=None, legend=False, ax=axes, **look)  # fmt: skip
    for y, (end, text) in enumerate(zip(ends, texts, strict=True)):
        beside(axes, 0 if pd.isna(end) else end, y, text.replace("nan", "?"))
    rows(axes, every.name)


# %%
if timed:
    parts = ["allocated", "reserved", "pinned"]
    every = alike.sort_values("allocated_bytes")
    every[parts] = every[[f"{part}_bytes" for part in parts]].astype(float) / 1e9
    both = [f"{row.allocated:.1f} / {row.reserved:.1f}" for row in every.itertuples()]
    figure, (gpu, host) = plt.subplots(1, 2, sharey=True, width_ratios=[3, 2],
                                       figsize=(WIDTH, 0.9 + 0.34 * len(every)))  # fmt: skip
    sns.barplot(every, x="reserved", y="run", fill=False, color=INK, width=0.74, linewidth=1,
                errorbar=None, ax=gpu)  # fmt: skip
    bars(gpu, every, "allocated", both, every[parts[:2]].max(axis=1))
    bars(host, every, "pinned", every.pinned.map("{:.1f}".format), every.pinned, hatch="///", edgecolor=INK)  # fmt: skip
    for axes, title in ((gpu, "GPU: allocated / reserved"), (host, "Host: pinned")):
        axes.set(title=title, xlabel="GB", xlim=(0, 1.4 * max(axes.get_xlim()[1], 1)))
    host = gb(me.pinned_bytes) if me.pinned_bytes > 1e6 else "nothing"
    show(figure, f"{me['name']} has {gb(me.allocated_bytes)} allocated on the fullest GPU and {host} "
         "pinned on the host.")  # fmt: skip
    table(frames.iterations[frames.iterations.run == run],
          {"kind": "iteration", "allocated_bytes": "allocated", "reserved_bytes": "reserved",
           "pinned_bytes": "pinned on the host", "host_rss_bytes": "process"},
          caption="Peaks of the fullest rank by iteration.",
          fold="Peaks by iteration")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## What moved
#
# The engine counts each copy, allocation and wait. What the counts must be follows from sizes,
# steps and branches alone, by a closed formula. The two must agree to the last byte.

# %%
if timed and ok and alike.h2d_schedule_bytes.max() > 0:
    every = alike.dropna(subset="h2d_schedule_bytes").sort_values("h2d_schedule_bytes")
    every["gb"] = every.h2d_schedule_bytes / every.steps_whole.fillna(1).astype(float) / 1e9
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.32 * len(every)))
    bars(axes, every, "gb", every.gb.map("{:.3g}".format), every.gb)
    axes.set(xlabel="GB to the device a step", xlim=(0, 1.15 * max([*every.gb, 1])))
    a_step = (me.h2d_schedule_bytes or 0) / me.steps_whole
    show(figure, f"{me['name']} copies {gb(a_step)} a step to each GPU, on average over the "
         "whole schedule.")  # fmt: skip

# %%
COUNTERS = {
    "h2d_bytes": "to the device", "d2h_bytes": "to the host", "h2d_copies": "copies to the device",
    "d2h_copies": "copies to the host", "allocations": "device allocations",
    "event_waits": "waits for an event", "stream_waits": "waits for a stream",
    "host_syncs": "waits of the host", "unshards": "gathers of shards",
}  # fmt: skip
counts = frames.counters[frames.counters.run == run].copy()
clean = counts.iteration[counts.kind == "clean"].max()
last = counts[counts.iteration == (counts.iteration.max() if pd.isna(clean) else clean)]
moved = last.groupby("counter")[["measured", "formula"]].max()  # of the busiest rank
counts["equal"] = (counts.measured == counts.formula).where(counts.formula.notna(), None)
same = counts.groupby("counter").equal
moved["equal"] = same.agg(lambda each: None if each.isna().any() else bool(each.all()))
moved = moved[(moved[["measured", "formula"]] > 0).any(axis=1)].reset_index()
moved["what"] = moved.counter.map(COUNTERS)

# %%
if len(moved):
    said = {True: "as the closed formula says", False: "not what the closed formula says",
            None: "without a formula to hold it against"}[me.formula_ok]  # fmt: skip
    said = "derived, as its copies hide in the library" if me.counters_derived else said
    kind = "derived" if me.counters_derived else "measured"
    sizes = moved.counter.str.endswith("_bytes")
    columns = {"what": "", "measured": "counted", "formula": "by formula", "equal": "equal"}
    table(moved[~sizes], columns, kind=kind, kinds={"formula": "derived"},
          caption=f"What {me['name']} did, {said}.",
          note="The busiest rank's, in the last clean iteration; equal in all ranks and "
          "iterations.")  # fmt: skip
    units = {"measured": "measured_bytes", "formula": "formula_bytes"}
    table(moved[sizes].rename(columns=units), {units.get(k, k): v for k, v in columns.items()},
          kind=kind, kinds={"formula_bytes": "derived"},
          caption=f"What {me['name']} copied, {said}.", empty="Nothing was copied.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Around the switch
#
# What the first rank did in the last blocks before the switch and the first ones after it.

# %%
events = timeline(frames, me)
visits = events[events.lane == "compute"]
if len(visits) and not me.rehearsal:
    before = int((visits.step < me.switch_step).sum())
    near = visits.iloc[max(0, before - 3) : before + 3]
    start, end = near.start_ms.min(), near.end_ms.max()
    cut = events[(events.end_ms > start) & (events.start_ms < end)]
    times = cut[["start_ms", "end_ms"]].clip(start, end) - start
    cut = cut.assign(**times, ms=times.end_ms - times.start_ms, block=cut.block.astype("Int64"),
                     **me[["engine", "name"]], branches=1)  # fmt: skip
    show(timelines(cut),
         f"Blocks, copies and collectives of {me['name']} around the switch.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Bits
#
# An engine moves weights and never changes arithmetic. So each iteration must end in the same
# latents, bit for bit, and so must each other engine at the same number of ranks.

# %%
if len(steps) and me.latents:
    others = runs[(runs.run != run) & runs.latents.notna()]
    others = others.assign(same=others.latents == me.latents)
    others = others.assign(page=[page(each) for each in others.run], day=others.started.str[:10])
    if len(others):
        table(others.sort_values(["name", "started"]),
              {"name": "held against", "day": "measured", "same": "same bits"},
              links={"name": "page"}, note="Same job, machine class and torch.",
              caption=f"{others.same.sum()} of {len(others)} other runs have the same bits.")  # fmt: skip
    md(f"SHA-256 of the latents: `{me.latents}`")

# %% [markdown] tags=["with-output"]
# ## The plan
#
# `stream` times a few blocks and the link first, predicts what each way of moving weights would
# cost, and tries the best two where they are close. A trial runs a part of the blocks, so trials
# compare only with each other.

# %%
planned = record.engine.plan or {"candidates": [], "trial": [], "chosen": 0}
tried_s = {one["candidate"]: one["step_s"] for one in planned["trial"]}
plan = pd.DataFrame(
    {"settings": describe(one["settings"]), **one["predicted"], "trial_s": tried_s.get(number),
     "chosen": number == planned["chosen"]}
    for number, one in enumerate(planned["candidates"])
)  # fmt: skip
if len(plan):
    taken = plan[plan.chosen].iloc[0]
    times = {"step_s": "step", "limit_s": "limit", "first_s": "first", "switch_s": "switch",
             "trial_s": "trial"}  # fmt: skip
    off = "" if me.rehearsal else f" A step was predicted at {seconds(taken.step_s)}"
    if timed and ok:
        off += f" and took {seconds(me.step_s)}: {ratio(taken.step_s / me.step_s - 1)}"
    table(plan, {"settings": "settings", "chosen": "chosen", **(times if not me.rehearsal else {}),
                 "weights_bytes": "weights on the GPU"},
          kind="predicted", kinds={"trial_s": "measured"},
          caption=f"The plan took {taken.settings}.{off}{'.' * bool(off)}",
          note="Limit: the longer of a resident step and of moving its bytes, without unpacking.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Runs of the same job
#
# An interval tells how steps of one run vary. How runs vary is more: boards of one model differ,
# and so does one board from day to day.

# %%
if apart:
    again = again.assign(day=again.started.str[:16].str.replace("T", " "), here=again.run == run)
    table(again.sort_values("started"),
          {"day": "measured", "here": "this page", "step_s": "steady step", "boards": "boards",
           "sm_mhz": "clock", "end_to_end_s": "end to end"}, interval=["step_s"],
          caption=f"{len(again)} runs of this job lie {apart} apart.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Machine and software

# %%
LINKS = ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable")

if tried:
    on, software = record.machine.model_dump(), record.software.model_dump()
    link, pcie = on["link"] or {}, on.get("pcie") or {}
    values = {
        "machine class": on["class_"], "GPU": on["gpu_name"],
        "GPU memory": gibibytes(on.get("gpu_memory_bytes")),
        "host memory": gibibytes(on.get("host_memory_bytes")),
        "interconnect": on["interconnect"],
        "PCIe": pcie.get("width") and f"generation {pcie['generation']}, {pcie['width']} lanes",
        **{f"link, {way.replace('_', ' ')}": f"{significant(link.get(f'{way}_gb_s'))} GB/s; each"
           f" GPU, all at once, {significant(link.get(f'{way}_together_gb_s'))} GB/s"
           for way in LINKS if link},
        "NCCL settings": ", ".join(f"{k}={v}" for k, v in (on.get("nccl") or {}).items()),
        "NCCL transport": ", ".join(on.get("transport") or []),
        "driver": on.get("driver"), "processor": on.get("cpu_model"),
        **{key: software.get(key) for key in ("python", "torch", "diffusers", "cuda", "nccl")},
        "commit": (software["git_sha"] or "") + ", changed" * bool(software["git_dirty"]),
        "started": record.started_at,
    }  # fmt: skip
    known = [(what, value) for what, value in values.items() if value not in (None, "", "—")]
    table(pd.DataFrame(known, columns=["what", "value"]), {"what": "", "value": ""}, kind=None,
          caption=f"What {me.job} ran on.")  # fmt: skip
    for trace in record.traces:
        md(f"* Trace of rank {trace['rank']}: {plain(trace['path'])}, {gb(trace['bytes'])}")

# %% [markdown]
# ## Reproduce

# %%
given = job.model_dump(exclude_defaults=True)
yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in given.items())
again = f"run `wanreport run {me.job}.yaml`"
if me.program:
    again = (
        f"run them with SGLang and `wanreport import {me.job} --log FILE --params {me.job}.yaml`"
    )
md(f"""
Save these lines as `{me.job}.yaml`, then {again}:

```yaml
{yaml}
```
""")
if me.status != "ok" and not os.environ.get(NO_MEASURING):  # then papermill fails too
    raise Stop(f"{me.job}: {me.status}: {me.reason}")
