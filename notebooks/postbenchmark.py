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

# %% [markdown]
# # What weight offloading costs, and where the time goes
#
# Wan2.2-T2V-A14B denoises with two transformers of 14 billion parameters each. *Layerwise offload*
# leaves their weights in host memory and copies each layer to the GPU shortly before it runs. A
# frozen analysis of SGLang, the [baseline](baseline.html), found it 9 % slower per step than the
# offload that it replaced. **What makes it slower, and can that be avoided?**

# %% tags=["parameters"]
results_dirs = ["results", "results/local"]

# %%
from wanreport.report.notebook import Stop, frames_of, md, page, parameters, show, table

parameters(globals(), "results_dirs")

import pandas as pd

from wanreport.analysis import causes, checks, compare, oldnew, overlap, predictions
from wanreport.analysis.answer import answer, not_measured, quoted, without_record
from wanreport.analysis.questions import questions
from wanreport.baseline import load_facts
from wanreport.jobs.settings import layerwise_held
from wanreport.records.project import project_root
from wanreport.report import figures
from wanreport.words import gibibytes, gigabytes, ratio, seconds, share, significant

f = frames_of(results_dirs)
facts = load_facts()

# %%
found = answer(f)
two = found[(found.place == "PCIe path") & (found.gpus == 2)]
at_480, at_720 = (two[two.height == height].set_index("engine") for height in (480, 720))
if not {"layerwise", "stream"} <= set(at_480.index):
    raise Stop(
        "This report compares layerwise with stream at 480p on two GPUs whose collectives share the"
        " PCIe link, and there is no such pair of runs. Restore results/ from git, or run:"
        " NCCL_P2P_DISABLE=1 wanreport measure params/campaign/480p-2gpu-{resident,layerwise,stream}.yaml"
    )
shared, windows = at_480.loc["layerwise"], at_480.loc["stream"]
longer = quoted(at_720.reset_index(), "PCIe path", "layerwise") or "was not measured at 720p"
md(
    f"""
**Weight copies that collide with collectives make it slower; copying between them avoids it.** On
two GPUs whose all-to-alls share the PCIe link with the weights ({shared.machines.partition(",")[0]}),
layerwise offload takes {seconds(shared.step_s)} a step at 480p, {ratio(shared.most)} over keeping all
weights on the GPU; `stream`, which copies only while no all-to-all runs, takes
{seconds(windows.step_s)}, {ratio(windows.most)}{", within noise" * (windows.claim == "within noise")}.
There `layerwise` costs {longer}, and on one GPU {quoted(found, "1 GPU", "layerwise")}.
""",
    look="answer",
)

# %%
head = compare.headline(f)
told = predictions.judged(f, predictions.load(project_root()))
ahead = told[
    told.run.isna() & (told.gpus == 2) & (told.height == 480) & (told.interconnect == "NVLink")
]
ahead = ahead[
    ahead.gpu.str.contains("H100") & (ahead.prefetch.fillna(1) == 1) & (ahead.engine != "resident")
]
ahead = ahead.assign(machine="2× H100, NVLink", overhead=ahead.predicted_overhead)
ahead = ahead[~ahead.machine.isin(head.machine)]
show(
    figures.overhead(head, predicted=ahead),
    caption="At 480p layerwise offload costs time where collectives share its link, and not on one GPU. "
    "Steady step over resident's. Whiskers: what both 95 % intervals allow; hollow: predicted, not "
    "measured.",
)

# %%
cost = compare.overhead(f)
jobs = cost[(cost.source == "job") & cost.latest]
spread = compare.spread(f)
left = not_measured(f).set_index("what")
held = jobs[jobs.reference.notna() & (jobs.reference != jobs.run)]
names = {
    "baseline": "the baseline's own jobs, 720p on {} GPUs",
    "NVLink": "the full model over NVLink",
    "720p": "anything at 720p",
}
gaps = [names[what].format(row.gpus) for what, row in left.iterrows()]
md(
    f"""
**How far to trust it.** The full model with random weights, one run a bar, a median of
{int(head.step_n.min())} to {int(head.step_n.max())} steady steps; {int(held.same_bits.sum())} of
{len(held)} runs of other engines have the bits of `resident`. `resident` ran once beside most of them,
so how far the GPUs drifted meanwhile is unknown; the same job on other boards of one kind moved by up
to {share(spread.spread.max())}. **Not run:** {"; ".join(gaps) or "nothing that was asked"}.
""",
    look="trust",
)

# %% [markdown]
# ## Why: copies and collectives on one link
#
# With sequence parallelism, each layer exchanges activations in *all-to-alls*. Where the GPUs have no
# NVLink, these cross the PCIe link that the weights use too. Below is the same amount of work under
# both engines, on one time axis. `layerwise` starts the next layer's copy at once, so it runs into
# all-to-alls and both slow down. `stream` holds its copies back until an all-to-all has ended.

# %%
runs = [shared.run, windows.run]
show(
    figures.timelines(*(overlap.excerpt(f, run) for run in runs)),
    caption="Layerwise copies cross all-to-alls; stream's fit between them. "
    "Rank 0 of two H100 on the PCIe path, a few blocks of a profiled step at 480p.",
)

# %%
shares = overlap.shares(f)
shares = shares[shares.latest].sort_values(["machine", "engine"])
shares["hidden_share"] = shares.hidden
shares["beside_x"] = shares.beside
table(
    shares,
    {
        "name": "engine",
        "machine": "machine",
        "hidden_share": "copies hidden",
        "rate_outside_gb_s": "rate of a load, no all-to-all",
        "rate_inside_gb_s": "beside all-to-alls",
        "collectives_s": "all-to-alls a step",
        "beside_x": "one beside a copy, to alone",
    },
    caption="Where copies meet all-to-alls, both take longer",
    kind="derived",
    note="Device events of rank 0 around the switch, profiled. Hidden: share of copy time in which a "
    "block computes and no all-to-all runs. Beside all-to-alls: an estimate, over loads that meet "
    "one. The last column holds all-to-alls against lone ones of their size.",
)

# %%
both = shares.loc[runs].set_index("engine")
collided = both.collectives_s["layerwise"] - both.collectives_s["stream"]
md(f"""
Under `layerwise` the all-to-alls take {seconds(collided, 2)} a step longer than under `stream`, and the
whole step {seconds(shared.step_s - windows.step_s, 2)} longer: the collision is about the whole gap.
`stream` also copies less, {gigabytes(both.h2d_step_bytes["stream"], 3)} against
{gigabytes(both.h2d_step_bytes["layerwise"], 3)} a step, because both branches of guidance use a layer
while it is there. The gap closes without copying less too: below, windows close it at the same bytes.

With longer steps the collision seems to matter less. `layerwise` costs {longer}, and `stream`
{quoted(at_720.reset_index(), "PCIe path", "stream")}: too few steps ran there to tell. Probably a
layer computes for so long that a delayed copy still arrives in time; no run at 720p was profiled.
""")

# %% [markdown]
# ## The baseline's five causes
#
# The baseline guessed five causes for the slower step and ranked them by seconds. Each is held here
# against pairs of runs that come close to removing it alone. Nearly all of them differ in other
# settings too; then the effect is of all of these together. An effect above zero means that the step
# is longer with the cause.

# %%
CAUSES = {
    "sync": "1. sync stalls",
    "compile": "2. eager/compiled transitions",
    "alloc": "3. allocation churn",
    "contention": "4. contention with all-to-alls",
    "late": "5. prefetch too late",
}
pairs = causes.causes(f, facts)
pairs["what"] = pairs.cause.map(CAUSES)
measured = pairs[pairs.run_a.notna()].copy()
measured["pair"] = measured.name_a + " → " + measured.name_b
measured["where"] = measured.machine.where(
    measured.machine == measured.machine_b, measured.machine + " → " + measured.machine_b
)
measured["others"] = measured.together_with.map(lambda names: "; ".join(names) or "nothing else")
measured["guess"] = [
    f"{low:.1f} to {high:.1f} s"
    for low, high in zip(measured.estimate_low_s, measured.estimate_high_s, strict=True)
]
measured["effect"] = [
    f"{value:+.2f} s".replace("-", "−")
    + ("" if pd.isna(low) else f" [{low:+.2f}, {high:+.2f}]".replace("-", "−"))
    for value, low, high in zip(
        measured.step_effect_s, measured.step_effect_low_s, measured.step_effect_high_s, strict=True
    )
]
closest = measured.assign(
    extra=measured.together_with.map(len), whole=-(measured.scale == 1).astype(int)
)
closest = closest.sort_values(["number", "extra", "whole", "scale", "run_a"], kind="stable")
closest = closest[~closest.claim.eq("no interval")].drop_duplicates(
    ["number", "changed", "machine", "machine_b"]
)
table(
    closest,
    {
        "what": "cause",
        "pair": "pair",
        "where": "machine",
        "work": "work",
        "effect": "effect on a step",
        "claim": "with it, the step is",
        "guess": "the baseline's guess",
        "others": "together with",
    },
    caption="Only pairs that differ in contention have an effect beyond noise",
    kind="derived",
    note="Of each setting and machine, the pair that differs in the fewest other settings, the full "
    "model first. Cells of one branch or fewer blocks are scaled to 40 blocks and two branches.",
)

# %%
table(
    measured,
    {
        "what": "cause",
        "pair": "pair",
        "where": "machine",
        "work": "work",
        "change": "what changed",
        "others": "together with",
        "effect": "effect on a step",
        "difference": "of the step",
        "claim": "claim",
    },
    caption="Every pair, with all settings in which it differs",
    kind="derived",
    fold="All pairs",
    note="Effect: the first run's step less the second's; where the number of GPUs or their "
    "interconnect changed, the difference of both overheads times the first resident's step.",
)

# %% [markdown]
# What the pairs say, cause by cause:
#
# - **Sync stalls, ranked first.** On one GPU `stream` waits half as often as `layerwise`; its step is
#   shorter by some hundredths of a second at most, within noise. On the PCIe path timed windows wait
#   more often, and the step is shorter.
# - **Allocation churn, ranked third.** `stream` with three slots and no windows allocates nothing in a
#   step and moves about the same bytes as `layerwise`. It is not faster, though the interval is too
#   wide to exclude the small cost that the baseline guesses.
# - **Contention, ranked fourth.** Windows are what differs between `stream` with three slots and
#   `stream` as planned, but for one more slot and more waits. They shorten the step at 14,040 and
#   32,760 tokens; for 7,800 the plan chose none. On one GPU `layerwise` loses its overhead.
# - **Transitions between eager and compiled code.** Compiled `layerwise` is as close to compiled
#   `resident` as the eager one is to the eager one.
# - **Prefetch too late.** Three layers ahead are no faster than one on one GPU.

# %%
todo = pairs[pairs.run_a.isna()]
table(
    todo,
    {"what": "cause", "machine": "where", "command": "command", "minutes": "minutes"},
    caption="Pairs that are not measured yet, and what would measure them",
    kind=None,
    empty="All pairs were measured.",
    note="Minutes: what the jobs took elsewhere, else their limit. Pairs of one setting alone are "
    "wanted for causes 1, 3 and 4.",
)

# %% [markdown]
# ## Old against new, in the baseline's own tables
#
# The baseline's *new* offload is `layerwise`. Its *old* one can be read as `swap`, which moves a
# whole expert at the switch, or as `fsdp`, which gathers shards as layers run. `swap` behaves as the
# old one did: not slower in a steady step, a spike at the switch, and about an expert's memory beyond
# layerwise's. `fsdp` has neither the spike nor the memory.

# %%
old = oldnew.which_old(f, facts)
old["difference_spike"] = old.spike
table(
    old,
    {
        "name": "engine",
        "machine": "machine",
        "work": "work",
        "difference": "steady step over layerwise's",
        "claim": "claim",
        "difference_spike": "switch over a steady step",
        "memory_experts": "memory above layerwise's, experts",
        "old": "as the old one",
    },
    caption="swap is what the baseline calls old",
    kind="derived",
    note="Memory: peak reserved by the allocator, as SGLang reports it, in units of one expert.",
)

# %% [markdown]
# A *steady* step is neither the first nor the switch. *End to end* is the clean iteration, the one
# after the warm-up, over all 27 steps with decoding. Where a run took a sample of the schedule, each
# step left out counts as the mean of its steady ones.

# %%
QUANTITIES = {
    "denoise": "denoising", "step": "average step", "decode": "decoding", "total": "end to end, or the sum of the parts",
    "first": "first step", "early": "median step before the switch", "switch": "switch step",
    "late": "median step after it", "steady": "median steady step", "other": "other steps",
}  # fmt: skip
SECTIONS = {"s3.2": "End to end (§3.2)", "s3.3": "Per step (§3.3)", "s3.3.budget": "Time budget"}
tables = oldnew.old_new(f, facts)
tables["what"] = tables.quantity.map(QUANTITIES)
for (machine, height), here in tables.groupby(["machine", "height"]):
    md(f"### {machine}, {height}p")
    for section, title in SECTIONS.items():
        table(
            here[here.section == section],
            {
                "what": "",
                "resident_s": "resident",
                "new_s": "layerwise",
                "swap_s": "swap",
                "fsdp_s": "fsdp",
                "minus_swap_s": "layerwise − swap",
                "minus_fsdp_s": "layerwise − fsdp",
                "baseline_new_s": "baseline, new",
                "baseline_old_s": "old",
                "baseline_minus_s": "new − old",
            },
            caption=f"{title}: {machine}, {height}p",
            kinds=dict.fromkeys(["baseline_new_s", "baseline_old_s", "baseline_minus_s"], "quoted"),
            note=f"{here.work.iloc[0]}; one clean iteration"
            + ("" if here.decoded.all() else ", without decoding")
            + ". Whether steady steps differ is in the table above. The baseline ran 720p on four GPUs, "
            "compiled, once, under a profiler.",
            fold="" if section == "s3.3" else title,
        )

# %%
pcie = tables[(tables.machine == f.runs.machine[shared.run]) & (tables.height == 480)]
whole = pcie[pcie.quantity == "total"].iloc[0]
md(f"""
Which one is faster depends on what is timed. On the PCIe path at 480p `swap` has a steady step as short
as resident's, within noise, but over a whole iteration it takes {seconds(whole.swap_s)} against {seconds(whole.new_s)} for
`layerwise` and {seconds(whole.resident_s)} for `resident`: each of its two moves of an expert costs
about half a minute.
""")

# %% [markdown]
# ## More GPUs
#
# Layerwise offload moves all weights to every GPU, FSDP a share to each. From this the baseline
# concludes that the new offload loses and the old one gains with more GPUs (§6.1). More than two GPUs
# were not measured here; predictions for them were written down before any such run and are never
# changed.

# %%
curve = predictions.curve(f, predictions.load(project_root()))
curve = curve[curve.engine.isin(["layerwise", "fsdp", "swap", "stream"]) & (curve.height == 720)]
curve = curve[curve.gpu_model.str.contains("H100") & (curve.interconnect == "PCIe path")]
show(
    figures.scaling(curve),
    caption="On the PCIe path fsdp is predicted to lose with more GPUs, and layerwise where steps get "
    "short. H100, 720p; predictions hollow.",
)

# %%
met = told[told.run.notna()].copy()
met["page"] = met.run.map(page)
met["range"] = [f"{low:.2f} to {high:.2f}" for low, high in zip(met.low_s, met.high_s, strict=True)]
met["machine"] = f.runs.machine[list(met.run)].to_numpy()
table(
    met,
    {
        "job": "job",
        "machine": "machine",
        "predicted_s": "predicted step",
        "range": "range, s",
        "measured_s": "measured step",
        "error": "error",
        "held": "within 10 %",
        "predicted_overhead": "predicted overhead",
        "overhead": "measured",
    },
    links={"job": "page"},
    kinds={"predicted_s": "predicted", "range": "predicted", "predicted_overhead": "predicted"},
    caption=f"{int(met.held.sum())} of {len(met)} predictions that were tested hold",
    note=f"{len(told) - len(met)} more wait for their machines. The range: all-to-alls that take no "
    "time, and twice the time. Error: predicted over measured, less 1.",
)

# %%
bytes_ = pd.DataFrame(
    [
        {"gpus": int(facts.number(f"s6.1.gpus.g{n}")),
         **{key: facts.number(f"s6.1.{key}.g{n}") for key in
            ("new_each", "new_all", "old_each", "old_all")}}
        for n in (2, 4, 6)
    ]
)  # fmt: skip
ours = jobs[(jobs.height == 480) & jobs.engine.isin(["layerwise", "fsdp", "stream"])]
ours = ours[~ours.compiled & ours.vram_budget_gb.isna() & (ours.prefetch.fillna(1) == 1)]
ours["all_bytes"] = ours.h2d_step_bytes_all
shared_bytes = ours[ours.engine == "layerwise"].h2d_step_bytes.max()
table(
    ours.sort_values(["gpus", "machine", "engine"]),
    {
        "name": "engine",
        "machine": "machine",
        "gpus": "GPUs",
        "h2d_step_bytes": "to each GPU a step",
        "all_bytes": "to all GPUs",
        "overhead": "over resident",
        "claim": "claim",
    },
    caption=f"Layerwise moves {gigabytes(shared_bytes, 3)} a step to each GPU, on one and on two",
    note="Counted by the engine in a steady step of both branches, 480p. Layerwise moves the same at "
    "any resolution; stream moves what its plan leaves in host memory.",
)

# %%
table(
    bytes_,
    {
        "gpus": "GPUs",
        "new_each": "new, each GPU (GB)",
        "new_all": "new, all (GB)",
        "old_each": "old, each GPU (GB)",
        "old_all": "old, all (GB)",
    },
    caption="What the baseline computed (§6.1)",
    kind="quoted",
    note="Its 17.6 GB a step is contradicted by its own traces; see the baseline's page.",
)

# %% [markdown]
# ## More prefetch
#
# Comparison B of the baseline: three layers ahead against one. It expected 0.5 to 1 s less a step,
# and about 1.3 GB more memory.

# %%
deep = oldnew.prefetch(f, facts)
table(
    deep,
    {
        "machine": "machine",
        "base_s": "one ahead",
        "deep_s": "three ahead",
        "difference": "difference",
        "claim": "claim",
        "same_boards": "same boards",
        "allocated_difference_bytes": "more memory",
    },
    caption="Three layers ahead gain nothing on one GPU and cost "
    f"{gigabytes(deep.allocated_difference_bytes.max(), 2)}",
    note=f"480p, one GPU; steady steps, n = {int(jobs.step_n.median())} each. As SGLang frees layers late, "
    f"{layerwise_held(40, 3, switch=True)} of them are on the GPU at once instead of "
    f"{layerwise_held(40, 1, switch=True)}.",
)

# %% [markdown]
# ## Engines beside their peers
#
# One run on the same boards: the same blocks and shapes (20 blocks; 8 at 75,600 tokens), our engines,
# SGLang's current layerwise offload and diffusers' group offload. Few tokens compute too little to
# hide the copies; there the link is the limit. The baseline asks why NVLink wins in §8. Its gain there
# is the old offload's two spikes; a steady step is as long with either offload, and our cells over
# NVLink show the same at 32,760 tokens.

# %%
cells = cost[(cost.source == "bench") & ~cost.again & (cost.engine != "resident")]
show(
    figures.lines(cells),
    caption="On one GPU streaming is within 2 % of resident from 7,800 tokens on; on the PCIe path that "
    "takes windows and a long step. Step over resident's in the same campaign; each is drawn.",
)

# %%
for machine, here in cells.groupby("machine"):
    table(
        here.sort_values(["branches", "tokens", "campaign", "step_s"]),
        {
            "name": "engine",
            "work": "work",
            "step_s": "step",
            "overhead": "over resident",
            "over_limit": "over the limit",
            "claim": "claim",
            "drift": "resident moved",
            "allocated_bytes": "peak allocated",
            "same_bits": "same bits",
        },
        interval=["step_s"],
        caption=f"Every row measured on {machine}",
        fold=f"Every row measured on {machine}",
        note="Step: median [95 % interval]. The limit is the larger of resident's step and of the "
        "bytes over the link's measured bandwidth. Resident moved: the closing run of resident over "
        "the first; a dash where it did not run again.",
    )

# %%
plans = compare.predicted(f)
plans["of"] = plans.source.map({"job": "the full model", "bench": "cells of 8 or 20 blocks"})
errors = (
    plans.assign(size=plans.error.abs())
    .groupby("of", as_index=False)
    .agg(n=("size", "size"), median_share=("size", "median"), worst_share=("size", "max"))
)
table(
    errors,
    {"of": "plans for", "n": "n", "median_share": "median error", "worst_share": "worst"},
    caption="Plans miss most cells by little and one by a lot; steps of the full model take longer than "
    "planned",
    kind="derived",
    note="Predicted step over the measured one, less 1; sizes without sign. Earlier runs count too.",
)

# %% [markdown]
# ## Memory
#
# SGLang's peak GPU memory is what its allocator *reserved*, in GiB, so ours stands beside it in the
# same way.

# %%
memory = oldnew.memory(f, facts)
memory["pinned_bytes"] = memory.pinned_bytes.where(~(memory.pinned_bytes < 1e6), 0)
stream_bytes, resident_bytes = f.runs.loc[[windows.run, windows.reference]].reserved_bytes
table(
    memory,
    {
        "name": "engine",
        "machine": "machine",
        "work": "work",
        "reserved_gib": "reserved at the peak",
        "free_gib": "left of the GPU",
        "allocated_bytes": "allocated",
        "pinned_bytes": "pinned on the host",
    },
    caption=f"At 480p stream reserves {gibibytes(stream_bytes, 3)} where resident reserves "
    f"{gibibytes(resident_bytes, 3)}",
    note="Peaks over ranks and iterations; pinned memory is shared by all ranks of a host.",
)

# %% [markdown]
# ## Traces and bandwidth
#
# The baseline's trace summary (§3.4) and its bandwidth tables (§4) come from traces that end before
# the GPU's own events. What device events of our own runs show of rates and overlap is
# [above](#why-copies-and-collectives-on-one-link); a summary of our traces in the baseline's columns
# is not made yet. The link itself, measured before each run: pinned copies to the device reach
# the rate below, on all GPUs at once.

# %%
links = jobs.groupby("machine", as_index=False).agg(
    least_gb_s=("link_gb_s", "min"), most_gb_s=("link_gb_s", "max"), n=("link_gb_s", "size")
)
links["baseline_gb_s"] = facts.number("s4.3.peak.bandwidth")
table(
    links,
    {"machine": "machine", "least_gb_s": "slowest run", "most_gb_s": "fastest run", "n": "runs",
     "baseline_gb_s": "baseline's peak"},
    kinds={"baseline_gb_s": "quoted"},
    caption=f"Pinned copies reach up to {significant(links.most_gb_s.max(), 3)} of the "
    f"{facts.text('s4.3.peak.bandwidth')} that the baseline takes as the peak",
    note="Slowest rank, all ranks copying, 512 MiB, median of five.",
)  # fmt: skip

# %% [markdown]
# ## Open questions
#
# The baseline ends with seven (§10). Each has its answer from runs, or the command that would give
# one.

# %%
QUESTIONS = {
    1: "Is the new offload faster on two GPUs?",
    2: "How do PCIe and NVLink compare at 10,000 tokens?",
    3: "Does sharding help, so that each GPU brings only a part?",
    4: "Would INT8 or FP8 transfers halve the traffic?",
    5: "Does a copy stream of higher priority help?",
    6: "Do several copy streams help?",
    7: "Does prefetch that knows the schedule help?",
}
answers = questions(f)
answers["what"] = answers.number.map(QUESTIONS)
table(
    answers[answers.run.notna()].sort_values(["number", "exact"], ascending=[True, False]),
    {
        "what": "question",
        "name": "engine",
        "machine": "machine",
        "work": "work",
        "overhead": "over resident",
        "claim": "claim",
        "exact": "as asked",
    },
    caption="What runs say of the open questions",
    fold="Runs that tell of the open questions",
)
table(
    answers[answers.run.isna()],
    {"what": "question", "command": "what would answer it", "minutes": "minutes"},
    caption="What is not measured",
    kind=None,
    note="No command: no engine does this yet.",
)

# %% [markdown]
# ## The checks
#
# What the baseline wanted checked in new results (§9.2, §6.1), and three checks of the engines
# themselves. Where the setup differs from what was asked, the answer says so. A rehearsal answers
# nothing about time, memory or overlap.

# %%
asked = checks.checks(f, facts)
asked["expects"] = [facts.text(name) if name else "" for name in asked.expected]
table(
    asked,
    {
        "question": "check",
        "status": "status",
        "machine": "machine",
        "measured": "measured",
        "expects": "the baseline expects",
        "setting": "differs from what was asked",
    },
    kinds={"expects": "quoted"},
    kind="derived",
    caption="The baseline's checks, answered where runs can tell",
)

# %% [markdown]
# ## All runs
#
# One row for each record of a job; each leads to its page. The baseline's other sections (hardware,
# model configuration, source facts, reference numbers, file index) stand on its
# [own page](baseline.html), each number with its verdict.
#
# Of the jobs that the baseline planned (§9.1) none has run at full size yet: they need four and six
# GPUs. They are eight files, because "old" can mean two engines.

# %%
planned = without_record(f)
table(
    planned[planned.asked],
    {"job": "job", "gpus": "GPUs", "purpose": "purpose", "command": "command"},
    kind=None,
    caption="The baseline's job matrix (§9.1): what has no record yet",
    empty="All of the baseline's jobs have a record.",
)

# %% [markdown]
# ### Runs of the full model

# %%
every = f.runs[(f.runs.source == "job") & ~f.runs.rehearsal].copy()
every["page"] = [page(row) for _, row in every.iterrows()]
every["started_at"] = every.started.str.slice(0, 16).str.replace("T", " ")
every["commit"] = every.commit.str.slice(0, 7)
every["on"] = every.boards.map(" ".join)
table(
    every.sort_values(["machine", "height", "job", "started"]),
    {
        "job": "job",
        "machine": "machine",
        "status": "status",
        "step_s": "steady step",
        "step_n": "n",
        "sm_mhz": "SM clock",
        "on": "boards",
        "started_at": "started, UTC",
        "commit": "commit",
    },
    links={"job": "page"},
    interval=["step_s"],
    caption="Every run of the full model",
    fold="Every run of the full model",
    note="Runs of one job: the latest is the one that other tables show.",
)
