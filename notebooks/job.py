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

import pandas as pd

from wanreport.report import figures, job_tables
from wanreport.report.notebook import (
    frames_of,
    gb,
    interval,
    md,
    measure,
    page,
    passed,
    plain,
    ratio,
    seconds,
    share,
    show,
    table,
)  # fmt: skip
from wanreport.words import counted

run = measure(job, machine=machine)  # measures only where there is no record yet
committed = run is not None and not run.startswith("results/local/")
frames = frames_of(["results"] if committed else ["results", "results/local"])
record, me = job_tables.opened(job, run, frames)
tried = bool(record.machine.class_)
steps, ok = frames.steps[frames.steps.run == run], me.status == "ok"
timed = len(steps) > 0 and not me.rehearsal  # the times of a rehearsal are no results

resident = frames.runs.loc[me.reference] if pd.notna(me.reference) else None
held = resident is not None and resident.run != run
runs = frames.runs[frames.runs.group == me.group] if run else frames.runs[:0]
alike = runs[runs.latest & ((runs.status == "ok") | (runs.run == run))] if run else runs
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
if timed:
    caption = f"Each step of {me['name']}, as its slowest rank saw it."
    if held:
        gap = seconds(abs(me.step_s - me.resident_s), 2)
        caption = {
            "slower": f"A steady step of {me['name']} is {gap} longer than resident's.",
            "faster": f"A steady step of {me['name']} is {gap} shorter than resident's.",
            "within noise": f"A steady step of {me['name']} is within noise of resident's.",
        }.get(me.claim, f"{me.step_n} steady steps are too few to tell {me['name']} from resident.")
    drawn = steps.assign(resident_s=me.resident_s) if held else steps
    show(figures.steps(drawn, engine=me.engine, whole=me.steps_whole), caption)

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
asked = {"what": "what", "asked": "asked for", **({"ran": "ran"} if len(steps) else {})}
table(job_tables.asked(record), asked, kind=None,
      caption="What was asked for, and what ran.")  # fmt: skip

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
model = record.model.model_dump()
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
    show(figures.schedule(schedule, boundary=1000 * (me.boundary_ratio or 0)),
         "All steps use one expert." if pd.isna(me.switch_step) else
         f"The experts switch at step {at} of {len(schedule)}, counted from 0.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## Time
#
# A warm-up iteration comes first. The clean iteration gives the times. The profiled one gives the
# timeline; its times do not count, as the profiler takes time too.

# %%
if timed and ok:
    longest = alike.loc[alike.end_to_end_s.idxmax()]
    caption = f"From end to end {longest['name']} takes {longest.end_to_end_s:,.0f} s"
    caption += f", the longest of {len(alike)} that did this work here." if len(alike) > 1 else "."
    show(figures.budget(alike.sort_values("end_to_end_s")), caption)

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
if timed:
    pinned = gb(me.pinned_bytes) if me.pinned_bytes > 1e6 else "nothing"
    show(figures.memory(alike.sort_values("allocated_bytes")),
         f"{me['name']} has {gb(me.allocated_bytes)} allocated on the fullest GPU and {pinned} "
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
moved = job_tables.moved(frames, run)
if timed and ok and alike.h2d_schedule_bytes.max() > 0:
    a_step = (me.h2d_schedule_bytes or 0) / me.steps_whole
    show(figures.moved(alike.sort_values("h2d_schedule_bytes")),
         f"{me['name']} copies {gb(a_step)} a step to each GPU, on average over the "
         "whole schedule.")  # fmt: skip

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
events = job_tables.around_switch(frames, run)
if len(events):
    show(figures.timelines(events, timed=not me.rehearsal),
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
plan = job_tables.plan(record)
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
          note="Limit: the longer of a resident step and of moving its bytes.")  # fmt: skip

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
if tried:
    table(job_tables.machine(record), {"what": "", "value": ""}, kind=None,
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
passed(me)
