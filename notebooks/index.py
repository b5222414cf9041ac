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
# # Streaming the weights of Wan2.2-T2V-A14B
#
# This video model denoises with two transformers of 14 billion parameters. **What does it cost to
# keep their weights in host memory and copy each layer to the GPU just before it runs, and can that
# cost be brought to zero?**

# %% tags=["parameters"]
results_dirs = ["results", "results/local"]

# %%
from wanreport.report.notebook import parameters

parameters(globals(), "results_dirs")

# %%
from wanreport.analysis import compare
from wanreport.analysis.compare import answer, claimed, quoted, sizes, without_record
from wanreport.report import figures
from wanreport.report.notebook import frames_of, md, page, show, table
from wanreport.words import counted, plain, ratio, share

frames = frames_of(results_dirs)
found = answer(frames)

# %%
two = found[(found.gpus == 2) & (found.height == 480) & (found.place == "PCIe path")]
claims = two.set_index("engine").claim
if {"layerwise", "stream"} <= {*claims.index}:
    verdict = f"Beside collectives layerwise is {claims['layerwise']}, stream {claims['stream']}."
    if claims["layerwise"] == "slower" and claims["stream"] != "slower":
        verdict = (
            "Copies that collide with collectives are the cost, and copying between them avoids it."
        )
    elsewhere = {"over NVLink": quoted(found, "NVLink", "layerwise"),
                 "on one GPU": quoted(found, "1 GPU", "layerwise")}  # fmt: skip
    elsewhere = "; ".join(f"{where} {said}" for where, said in elsewhere.items() if said)
    short = found[found.claim == "no interval"].groupby("place")
    few = "; ".join(f"{sizes(rows)} ({place})" for place, rows in short)
    md(f"""
**{verdict}** What a step costs over keeping all weights on the GPU, where collectives share the PCIe
link with the copies: `layerwise`, SGLang's way, {quoted(found, "PCIe path", "layerwise")}; `stream`,
which waits for a free link, {quoted(found, "PCIe path", "stream")}. Elsewhere `layerwise` costs:
{elsewhere or "not measured"}.{f" Too few steps to tell: {few}." * bool(few)}
""", "answer")  # fmt: skip

# %%
head = compare.headline(frames)
if len(head):
    pair = head[head.engine.isin(["layerwise", "stream"])]
    show(
        figures.overhead(pair),
        f"A step of layerwise against resident's: {claimed(found, 'layerwise')}. Bold: beyond noise;"
        " whiskers: what both 95 % intervals allow; *: too few steps for an interval; –: not measured.",
    )

# %%
rivals = compare.rivals(frames)
peers = rivals[rivals.engine.isin(["sglang", "diffusers"])]
if len(peers):
    md(f"""
[Beside other projects' offload](postbenchmark.html#engines-beside-their-peers), on the same boards, a step of
`stream` is {compare.beaten(peers)}, beyond noise. A cell is a machine, a length and one or both branches of
guidance, here with {peers.blocks.min()} to {peers.blocks.max()} blocks and {peers.tokens.min():,} to
{peers.tokens.max():,} tokens on up to {counted(int(peers.gpus.max()), "GPU")}.
""")

# %%
layouts = compare.layouts(frames)
layouts = layouts[(layouts.engine == "resident") & (layouts.claim == "faster")]
layouts = layouts.sort_values("difference")
gains = [f"{ratio(row.difference)} on {row.machine}, {row.height}p" for row in layouts.itertuples()]
if gains:
    md(f"""
[CFG parallelism](postbenchmark.html#which-layout-wins) gives each branch of guidance half of the GPUs,
which leaves fewer collectives. It makes a step of `resident` shorter: {"; ".join(gains)}.
""")

# %%
again = compare.overhead(frames).query("source == 'job'").groupby(["group", "job"]).step_s
spread = (again.max() / again.min() - 1).max()
ended = frames.runs[~frames.runs.rehearsal & frames.runs.status.isin(["ok", "oom"])]
left = without_record(ended).dropna(subset="baseline_job").drop_duplicates("baseline_job")
left = left[~left.baseline_job.isin(ended.baseline_job)]
gpus = " and ".join(map(str, sorted(set(left.gpus))))
gaps = {
    f"the {len(left)} jobs that the baseline asks for, 720p on {gpus} GPUs": len(left),
    "the full model on GPUs that talk over NVLink": not (found.place == "NVLink").any(),
    "any job at 720p": not (found.height == 720).any(),
}
gaps = ", and ".join(what for what, missing in gaps.items() if missing)
if len(head):
    md(
        f"""
**How far to trust it.** Each mark is one run of the full model with random weights: {pair.steps_run.min()}
to {pair.steps_run.max()} of {pair.steps_whole.max()} steps, and of {pair.step_n.min()} to {pair.step_n.max()}
steady ones the median. {int(pair.same_bits.sum())} of {len(pair)} have the bits of `resident`, which keeps
all weights on the GPU. On the same boards `resident` ran once more for {int(pair.bracketed.sum())} of them. The same job on other boards of one kind differed by up to
{share(spread)}. **Not measured:** {gaps or "nothing that was asked"}.
""",
        "trust",
    )
else:
    md("**No engine was held against `resident` at full scale yet.** See the jobs below.")

# %% [markdown]
# Read on: [why copies and collectives collide, and every comparison](postbenchmark.html) · [what
# survives of the baseline analysis, number by number](baseline.html)

# %% [markdown] tags=["with-output"]
# ## Runs
#
# A job is one engine at one size on one machine, and leads to its page. *Overhead* is a
# steady step over that of `resident`, taken on the same boards where there is such a run, also an
# earlier one. *End to end* is a clean iteration over the whole schedule, and decoding where a job
# decodes; steps that did not run count as the mean steady one. *Peak* is what tensors take on the
# fullest GPU.

# %%
jobs = frames.runs[frames.runs.source == "job"]
claim = jobs.claim.mask(jobs.resident_s.isna(), "no resident of this work")
jobs = jobs.assign(
    name=jobs.job,  # it holds the engine's
    page=[page(run) for run in jobs.run],
    claim=claim.mask((jobs.engine == "resident") & (jobs.overhead == 0), "the reference"),
    decoded=jobs.decode_s.notna(),
    over=jobs.overhead.map(ratio).where(jobs.overhead.notna(), "none"),
    against=jobs.resident_s.map("{:.3f} s".format).where(jobs.resident_s.notna(), "none"),
)
ok = jobs.status == "ok"
full, failed = jobs[ok & ~jobs.rehearsal], jobs[~ok & jobs.latest]
small = jobs[ok & jobs.rehearsal & jobs.latest]

# %%
shown = {
    "name": "job",
    "step_s": "steady step",
    "against": "resident's",
    "over": "overhead",
    "claim": "that is",
    "end_to_end_s": "end to end",
    "decoded": "decoded",
    "allocated_bytes": "peak",
}
for machine in sorted(set(full.machine)):
    runs = full[full.machine == machine].sort_values(["height", "work", "step_s"])
    md(f"### {plain(machine)}")
    latest, earlier = runs[runs.latest], runs[~runs.latest]
    table(
        latest,
        shown,
        links={"name": "page"},
        interval=["step_s"],
        caption=f"{counted(len(latest), 'job')} on {machine}.",
    )
    if len(earlier):
        table(
            earlier.assign(day=earlier.started.str[:10]),
            {"name": "job", "day": "measured", **shown},
            links={"name": "page"},
            interval=["step_s"],
            caption=f"Runs on {machine} that later ones of the same job took over from.",
            fold=counted(len(earlier), "earlier run"),
        )

# %% [markdown] tags=["with-output"]
# ## Jobs without a result
#
# A job that failed or that was never run keeps its row, with the reason and what to do.

# %%
if len(failed):
    table(
        failed,
        {
            "job": "job",
            "machine": "machine",
            "status": "status",
            "reason": "reason",
            "hint": "what to do",
        },
        links={"job": "page"},
        kind=None,
        caption=f"{counted(len(failed), 'job')} ended without a result.",
    )

# %%
missing = without_record(frames.runs)
missing["asked"] = missing.baseline_job.notna()
if "results/local" in results_dirs:  # only there do jobs without a record have a page
    missing["page"] = ("jobs/none/" + missing.job + ".html").where(missing.asked)
else:
    missing["page"] = None
shown = {"job": "job", "gpus": "GPUs", "purpose": "asks for", "command": "to measure it"}
for asked, rows in missing.groupby("asked", sort=False):
    whose = (
        "Not run in full: {} of the baseline" if asked else "No record: {} of this project's own"
    )
    table(
        rows,
        shown,
        links={"job": "page"},
        kind=None,
        caption=f"{whose.format(counted(len(rows), 'job'))}.",
        fold="" if asked else f"{counted(len(rows), 'more job', 'more jobs')} without a record",
    )

# %% [markdown] tags=["with-output"]
# ## Rehearsals
#
# Small models on whatever machine there is, to try the code. They answer for counters, bytes and
# bits, and say nothing about time or memory on GPUs.

# %%
if len(small):
    group = small.groupby("group").latents
    same = (group.transform("nunique") == 1).map({True: "yes", False: "no"})
    table(
        small.assign(
            same=same.where(group.transform("size") > 1, "no peer"),
            formula=small.formula_ok.map({True: "yes", False: "no"}).fillna("no formula"),
        ),
        {
            "job": "job",
            "machine": "machine",
            "engine": "engine",
            "formula": "counters equal the formula",
            "same": "same bits as its peers",
        },
        links={"job": "page"},
        kind=None,
        caption=f"{counted(len(small), 'rehearsal')}.",
    )
