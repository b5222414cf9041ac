# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The frozen analysis of layerwise offload, judged
#
# A document of February 2026 explains why SGLang's *new* offload, which streams the weights of
# Wan2.2-T2V-A14B layer by layer, took longer per step than the *old* one on four H100s that share
# one PCIe bus. It was frozen before the runs that were to test it.
# **Which of its conclusions survive?**

# %% tags=["parameters"]
facts_path = None  # another folder of facts, to see what a change would do
results_dirs = ["results", "results/local"]  # records that may test its predictions

# %%
from wanreport.report.notebook import frames_of, gb, gib, md, parameters, seconds, show, table
from wanreport.report.notebook import page as page_of

parameters(globals(), "facts_path", "results_dirs")

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from wanreport.analysis import compare
from wanreport.analysis.answer import answer, quoted
from wanreport.analysis.checks import checks
from wanreport.baseline import load_facts, page
from wanreport.baseline.ledger import load_ledger
from wanreport.jobs.schedule import flow_schedule
from wanreport.report import style
from wanreport.words import significant

# %%
frames = frames_of(results_dirs)
ledger = load_ledger(load_facts(facts_path), frames)
facts, rows, conclusions = ledger.facts, page.rows(ledger), page.conclusions(ledger)
ours, asked = answer(frames), checks(frames, facts)
measured = asked[asked.status != "not measured"]
groups = conclusions.group.value_counts().reindex(page.GROUPS, fill_value=0)


def fact(name):
    """Quote a fact as printed, with its mark, as a link to its row in the ledger."""
    return f"[{' '.join([rows.printed[name], rows.sign[name]]).strip()}]({rows.href[name]})"


def cost(place, engine, found=None):
    """Say what an engine costs a step over resident weights, where collectives go that way."""
    return quoted(ours if found is None else found, place, engine) or "not measured"


def span(check):
    """Say from what to what our runs' values for a check reach."""
    found = measured[measured.check == check]
    ends = dict.fromkeys(significant(value, 3) for value in (found.value.min(), found.value.max()))
    return " to ".join(ends) + f" {found.unit.max()}" if len(found) else "not measured"


def answers(check):
    """Say what our runs gave for a check, by machine."""
    found = measured[measured.check == check]
    return "; ".join(f"{row.measured} ({row.machine})" for row in found.itertuples())


# %%
slower = measured[(measured.check == "slower-swap") & measured.machine.str.contains("PCIe path")]
falls = f"""**{groups[page.CONTRADICTED]} of its {len(conclusions)} conclusions fall, its ranking of
the causes among them.**"""
rest = f"""{groups[page.PAPER]} conclusions are consistent on paper only, and {groups[page.NOT_YET]}
were not measured in its setup."""
if len(slower):
    clear = ours[ours.claim != "no interval"]
    layerwise = clear[(clear.engine == "layerwise") & (clear.place == "PCIe path")]
    gap = " and ".join(seconds(each, 2) for each in layerwise.step_s - layerwise.resident_s)
    md(f"""
{falls} It put sync stalls first, at {fact("s7.sync.low")} to {fact("s7.sync.high")} a step, and
contention between copies and collectives fourth, at {fact("s7.contention.low")} to
{fact("s7.contention.high")}, but contention explains the gap that we measured: {gap} a step where
two GPUs share the PCIe link ({cost("PCIe path", "layerwise", clear)}), against
{cost("PCIe path", "stream", clear)} when copies run between collectives and
{cost("1 GPU", "layerwise", clear)} on one GPU. What survives: on a shared link the new offload is
slower than the old one ({" and ".join(slower.measured)} in our runs) and needs less GPU memory;
{rest}
""", "answer")  # fmt: skip
else:
    md(f"{falls} {rest}", "answer")

# %%
SECTIONS = ["The document", "Hardware", "Model", "Benchmark data", "PCIe bandwidth", "Source code",
            "GPU scaling", "Causes", "Pull request", "Jobs and checks", "Open questions",
            "File index"]  # fmt: skip
RED, BLUE, GREY = "#b5403a", "#4f7596", style.INK
LOOKS = {
    page.FALSE: {"facecolor": RED, "edgecolor": RED},
    page.FALLS: {"facecolor": (RED, 0.25), "edgecolor": RED, "hatch": "//"},
    page.OPEN: {"facecolor": "none", "edgecolor": GREY, "linestyle": ":"},
    page.HOLDS: {"facecolor": BLUE, "edgecolor": BLUE},
    page.UNKNOWN: {"facecolor": "none", "edgecolor": GREY},
}
stated = rows.assign(where=[f"§{n} {SECTIONS[n]}" for n in rows.section])
with style.theme("x"):
    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.2))
    sns.histplot(stated[stated.section > 0], y="where", hue="outcome", hue_order=list(LOOKS)[::-1],
                 multiple="stack", shrink=0.7, alpha=1, linewidth=1, ax=axes)  # fmt: skip
    for look, bars in zip(LOOKS.values(), axes.containers, strict=True):
        plt.setp(bars, **look)
        counts = [f"{bar.get_width():.0f}" if bar.get_width() > 3 else "" for bar in bars]
        axes.bar_label(bars, counts, label_type="center",
                       color="white" if look["facecolor"] in (RED, BLUE) else GREY)  # fmt: skip
    axes.legend(handles=[Patch(**look, label=name) for name, look in LOOKS.items()])
    axes.set(xlabel="facts", ylabel="")
show(
    figure,
    caption="What became of the document's numbers and claims, by section: its timings (§3) are "
    "consistent, what it derives about bytes (§4, §6) and causes (§7) is not.",
)

# %%
gpus = " and ".join(map(str, sorted(set(ours.gpus))))
own = ours[(ours.height == facts.number("s2.height")) & (ours.gpus > 1)]
there = f"; on two of ours layerwise costs {cost('PCIe path', 'layerwise', own)}"
md(f"""
**How far to trust this.** Arithmetic, model sizes and source code need no GPU. Our runs are of
{gpus} GPUs, the document's of {facts.text("s3.1.new.gpus")} at
{facts.number("s2.height"):.0f}p{there if len(own) else ""}. So ours show what contention can do,
not what it did there. The document's times come from {fact("s3.2.runs")} run of each offload, under
a profiler, with a wrong flow shift ({fact("s2.flow_shift.old")} for {fact("s2.flow_shift.new")}).
""", "trust")  # fmt: skip

# %% [markdown]
# ## What became of its conclusions
#
# A conclusion is contradicted if something that it needs is. It may still be true for another
# reason. Each leads to the fact that decides. The last column says what our runs gave, which decide
# nothing by themselves, as they are of another setup.

# %%
moved, seen = "an unknown amount", {}
if len(slower):
    new, old = frames.runs.loc[slower.runs.iloc[-1]].reserved_bytes
    runs = frames.runs[(frames.runs.engine == "layerwise") & frames.runs.latest]
    runs = runs[(runs.source == "job") & ~runs.rehearsal & ~runs.compiled]
    moved = " or ".join(sorted({gb(each, 3) for each in runs.h2d_step_bytes}))
    deeper = runs[runs.gpus == 1].groupby("prefetch").reserved_bytes.max().diff().iloc[-1]
    seen = {
        "s4.3.peak.bytes": f"layerwise moves {moved} a step",
        "s5.2.shards": f"the switch takes {span('spike-swap')} with swap, a spike as in the "
        f"document, and {span('spike-fsdp')} with fsdp, no longer than other steps",
        "s7.sync.mechanism": f"layerwise on one GPU: {cost('1 GPU', 'layerwise')}",
        "s6.1.new_each.g4": f"layerwise moves {moved} a step per GPU, on one and on two",
        "s9.1.pure4.config": f"{span('pure')} reserved without offload, on one GPU and on two",
        "s3.3.steady.percent": f"over swap {answers('slower-swap')}",
        "s3.2.peak.percent": f"{gib(new, 3)} reserved on two GPUs; {gib(old, 3)} with swap",
        "s8.total.speedup": f"layerwise over NVLink: {cost('NVLink', 'layerwise')}",
        "s6.1.new_grows": f"over resident {answers('scaling-resident')}",
        "s9.2.prefetch.gain_low": f"{answers('prefetch')}; {gib(deeper, 3)} more reserved",
    }
CAPTIONS = {
    page.CONTRADICTED: "Contradicted by arithmetic, by the model's sizes or by SGLang's source",
    page.MEASURED: "Measured again in the document's setup",
    page.PAPER: "Consistent on paper only: the figures agree with one another or with the source",
    page.NOT_YET: "Not measured in the document's setup",
}
conclusions["ours"] = conclusions.fact.map(seen).fillna("no run bears on it")
for group, some in conclusions.groupby("group", sort=False):
    table(some, {"conclusion": "Conclusion", "says": "What the document says",
                 "instead": "What is right, or limits it", "ours": "Our runs"},
          caption=CAPTIONS[group], links={"conclusion": "href"}, kind=None)  # fmt: skip

# %% [markdown]
# ## The document, section by section
#
# Below is the document again, every number as it was printed, right or wrong. A mark behind a
# number says what became of it, and the number leads to its row in [the ledger](#ledger):
# ✓ it holds, ✗ it is contradicted, † it follows from a contradicted one, … it was not measured in
# the document's setup. A number without a mark is a name, a setting or a measurement that nothing
# here can check.
#
# **Words.** The *new* offload keeps the layers of a transformer in host memory and copies each to
# the GPU shortly before it runs; *prefetch* is how many layers ahead. *FSDP*, PyTorch's sharding,
# gives each GPU a part of every layer and gathers it when the layer runs. *Ulysses* splits the
# video's tokens over the GPUs, which exchange parts around each attention: *all-to-all*. At the
# *switch* the second transformer takes over; *flow_shift* says when. *H2D* is from host to GPU.


# %%
def section(part, unfolded=1):
    """Show a section's tables, and a table of what stands in none of them; fold all but some."""
    here = rows[rows.part == part]
    for caption, grid in page.grids(ledger, part):
        shown = [name for name in grid if not name.endswith(" href")]
        fold = f"{caption}: {tally(rows.loc[grid.attrs['facts']])}"
        table(grid, {name: name for name in shown}, caption=caption, kind="quoted",
              links={name: f"{name} href" for name in shown[1:]},
              fold=fold if unfolded < 1 else "")  # fmt: skip
        unfolded -= 1
    claims = here[here.place == "claim"]
    if len(claims):
        caption = f"What §{part} says{' besides' * any(here.place == 'table')}"
        columns = {"claim": "Claim", "source": "Source it names", "verified": "Verified, it says",
                   "judged": "Verdict"}  # fmt: skip
        table(claims, {name: columns[name] for name in columns if claims[name].any()}, kind=None,
              caption=caption, links={"claim": "href"},
              fold=f"{caption}: {tally(claims)}" if unfolded < 1 else "")  # fmt: skip


def tally(some):
    """Count outcomes: "holds: 10, contradicted: 2"."""
    counts = some.outcome.value_counts().reindex(page.OUTCOMES, fill_value=0)
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count)


# %%
section("0", 0)

# %% [markdown]
# ## 1. Hardware context
#
# One node of a cluster, whose GPUs talk to each other over the PCIe fabric that also carries the
# weights. That the two share a bus is the claim that matters most; on our PCIe path they do.

# %%
section("1", 0)

# %% [markdown]
# ## 2. Model configuration
#
# All earlier runs used a local path, which SGLang does not know by name. It guessed from the class
# of the pipeline, and guessed the wrong member of the family. SGLang's registry and the scheduler,
# run again here, agree with every line that they can judge.

# %%
section("2")

# %% [markdown]
# ## 3. Existing benchmark data

# %%
section("3", 0)
over = facts.number("s3.2.total.new") - facts.number("s3.3.budget.total.new")
md(f"""
The arithmetic is sound almost throughout. Three things are off: the time budget leaves
{seconds(over, 3)} of the new offload's total unexplained ({fact("s3.3.budget.total.new")} of
{fact("s3.2.total.new")}), one average is rounded down ({fact("s3.2.step.old")}), and the trace
summary counts fewer copies ({fact("s3.4.pcie.new")}) than §4 finds in the same traces
({fact("s4.2.async")} asynchronous ones alone).
""")

# %% [markdown]
# ### 3.1 Job-level summary

# %%
section("3.1", 0)

# %% [markdown]
# ### 3.2 End-to-end timing

# %%
section("3.2")

# %% [markdown]
# ### 3.3 Per-step timing

# %%
section("3.3", 2)

# %% [markdown]
# ### 3.4 Profiler trace summary

# %%
section("3.4", 0)

# %% [markdown]
# ## 4. PCIe bandwidth analysis

# %%
md(f"""
The bytes fit four bytes a parameter, where §5.1 says {fact("s5.1.param_bytes")}: either the weights
moved as fp32, or bytes and bandwidths are about twice what they should be. And the analysis has
{fact("s4.3.peak.bytes")} moved in a step, where the new offload moves
{rows.instead["s4.3.peak.bytes"]} by the model's sizes and our `layerwise` {moved}. So its
conclusion, that PCIe has bandwidth enough, does not follow.
""")

# %% [markdown]
# ### 4.1 Old offload

# %%
section("4.1", 0)

# %% [markdown]
# ### 4.2 New offload

# %%
section("4.2", 0)

# %% [markdown]
# ### 4.3 Theoretical PCIe budget

# %%
section("4.3")

# %% [markdown]
# ## 5. Source code verified facts

# %%
source = ledger.evidence.source
section("5", 0)
md(f"""
Each citation was looked up in {len(source["releases"])} releases of SGLang. The source that was
read lies {source["state"]}. Most lines say what the document says they do; where it errs, the lines
are right but are not the ones that run: its old offload never reaches FSDP with the flags it was
given, and Wan's all-to-all goes another way, with {rows.instead["s5.4.per_layer"]} calls a layer
and not {fact("s5.4.per_layer")}.
""")

# %%
files = pd.DataFrame(source["files"])
table(files, {"file": "File", "fits": "Releases that fit", "conclusion": "What follows"}, kind=None,
      caption="The releases that each cited file can have been read from",
      fold=f"The {len(files)} cited files, and the releases that fit")  # fmt: skip

# %% [markdown]
# ### 5.1 New offload (LayerwiseOffloadManager)

# %%
section("5.1", 0)

# %% [markdown]
# ### 5.2 Old offload (FSDP CPUOffloadPolicy)

# %%
section("5.2", 0)

# %% [markdown]
# ### 5.3 Mutual exclusion

# %%
section("5.3", 0)

# %% [markdown]
# ### 5.4 Ulysses sequence parallelism

# %%
section("5.4", 0)

# %% [markdown]
# ### 5.5 Timestep schedule
#
# The schedule needs no GPU: both can be computed here, and with them the switch.

# %%
steps, boundary = int(facts.number("s2.steps")), facts.number("s5.5.boundary")
shifts = [facts.number(f"s5.5.shift.{which}") for which in ("low", "high")]
times = pd.DataFrame({f"flow_shift {s:g}": flow_schedule(steps, s).timesteps for s in shifts})
times = times.rename_axis("step").reset_index()
times = times.melt("step", var_name="shift", value_name="timestep")
switches = times[times.timestep < boundary].groupby("shift").step.min()
with style.theme():
    figure, axes = plt.subplots(figsize=(style.WIDTH, 2.8))
    sns.scatterplot(times, x="step", y="timestep", hue="shift", style="shift", palette=[RED, BLUE],
                    ax=axes)  # fmt: skip
    axes.axhline(boundary, color=GREY, linewidth=0.9)
    for step in switches:
        axes.annotate(f"step {step}", (step, boundary), xytext=(3, 4), textcoords="offset points")
    axes.legend(title=None)
show(
    figure,
    caption=f"Computed here: the timestep falls below the boundary at step {switches.min()} with "
    f"the flow shift of the old runs, and at step {switches.max()} with the right one.",
)
section("5.5", 0)

# %% [markdown]
# ## 6. GPU scaling analysis
#
# ### 6.1 The new offload does not scale with the number of GPUs
#
# Read off the source code, not measured. That each GPU moves all weights is right, and so is that
# the total grows with the GPUs. The sizes are not: they fit no weights of the model. And the old
# offload, as it was run, moves nothing at all in a steady step.

# %%
sizes = rows[rows.fact.str.fullmatch(r"s6\.1\.(new|old)_each\.g\d")]
sizes = pd.DataFrame({
    "GPUs": [facts.number(name.replace(name.split(".")[2], "gpus")) for name in sizes.fact],
    "offload": sizes.fact.str.contains("new").map({True: "new", False: "old, if it were FSDP"}),
    "as the document says": [facts.number(name) for name in sizes.fact],
    "from the model's sizes": [float(ledger[name].other.value) for name in sizes.fact],
}).melt(["GPUs", "offload"], var_name="source", value_name="GB per GPU and step")  # fmt: skip
with style.theme():
    figure, axes = plt.subplots(figsize=(style.WIDTH, 3))
    sns.lineplot(sizes, x="GPUs", y="GB per GPU and step", hue="offload", style="source",
                 markers=True, palette=[style.ENGINES["layerwise"], style.ENGINES["fsdp"]],
                 ax=axes)  # fmt: skip
    axes.set(ylim=(0, None), xticks=sorted(set(sizes.GPUs)))
    sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5))
show(
    figure,
    caption="For both offloads the document gives a third of the bytes that the model's sizes do.",
)
section("6.1")

# %% [markdown]
# ### 6.2 What the prefetch size costs

# %%
section("6.2")

# %% [markdown]
# ## 7. Hypothesized causes
#
# Why is the new offload slower in the steady state? The document guesses five causes and measured
# none of them. The first cannot be: SGLang's hooks make the GPU's streams wait for one another, and
# never the CPU. Our runs, which are eager and so have all but the second, measured the sum of the
# others: without collectives it is within noise, and on a shared link at 480p it has the size of the
# fourth. What single pairs say is in the [post-benchmark report](postbenchmark.html).

# %%
CAUSES = {"sync": "sync stalls", "compile": "eager and compiled", "alloc": "allocations",
          "contention": "contention", "late": "late prefetch"}  # fmt: skip
spans = [
    {"what": f"{n}. {label}", "of": "the document's guess", "s": facts.number(f"s7.{cause}.{end}")}
    for n, (cause, label) in enumerate(CAUSES.items(), 1)
    for end in ("low", "high")
]
layerwise = ours[(ours.engine == "layerwise") & ours.place.isin(["1 GPU", "PCIe path"])]
for row in layerwise.sort_values("place", ascending=False).itertuples():
    told = compare.difference(frames.runs.loc[row.run], frames.runs.loc[row.reference])
    ends = ["step_difference_s"] if row.claim == "no interval" else ["low_s", "high_s"]
    what = f"all but the second, {row.place}, {row.height}p"
    spans += [{"what": what, "of": "our runs", "s": told[end]} for end in ends]
with style.theme("x"):
    figure, axes = plt.subplots(figsize=(style.WIDTH, 2.9))
    sns.pointplot(pd.DataFrame(spans), x="s", y="what", hue="of", estimator="median", capsize=0.3,
                  errorbar=("pi", 100), linestyle="none", markers=["o", "s"],
                  palette=[GREY, style.ENGINES["layerwise"]], ax=axes)  # fmt: skip
    axes.legend(title=None, loc="center right")
    axes.set(xlabel="seconds a step", ylabel="")
show(
    figure,
    caption="In our runs all but the second cause together cost at most about what the document guesses for "
    "contention, and far less than what it guesses for sync stalls.",
)
section("7")

# %% [markdown]
# ## 8. PR #15511 reference numbers

# %%
md(f"""
The pull request that brought the new offload measured it on {fact("s8.gpus")} GPUs with NVLink. Its
figures fit together but for one rounding. The gain is the first step and the switch; a steady step
gets slightly longer ({fact("s8.early.new")} after {fact("s8.early.old")}).
""")
section("8")

# %% [markdown]
# ## 9. Pending new benchmarks
#
# Three of the six jobs cannot answer what they are for: the GPUs of two of them do not divide the
# attention heads, and the one without flags offloads by layers. What our own runs say of the checks
# is below them, and at length in the [post-benchmark report](postbenchmark.html).
#
# ### 9.0 Job history

# %%
section("9.0", 0)

# %% [markdown]
# ### 9.1 Job matrix

# %%
section("9.1", 0)

# %% [markdown]
# ### 9.2 What to check in the new results

# %%
section("9.2")

# %%
told = measured[measured.expected != ""]
told = told.assign(href=told.expected.map(rows.href), run=[page_of(each[-1]) for each in told.runs])
table(told, {"question": "Check", "machine": "Machine", "measured": "Measured", "status": "",
                "setting": "Differs from what was asked"}, kind="measured",
      caption="What our runs say of these checks; another setup than asked for decides nothing",
      links={"question": "href", "measured": "run"},
      fold=f"What our runs say of these checks: {len(told)} answers")  # fmt: skip

# %% [markdown]
# ### 9.3 Key comparisons to make

# %%
section("9.3", 0)

# %% [markdown]
# ## 10. Open questions for future work

# %%
section("10")

# %% [markdown]
# ## 11. File index

# %%
section("11", 0)

# %% [markdown]
# ## Ledger
#
# Every fact of the document, in its order, with the verdict and how it comes about. "or" stands
# before a number where two places of the document differ and either may be wrong. Formulas name
# facts by their ids and sizes of the model by wan.*. Verdicts that rest on a run lead to its page. GB
# is 10⁹ bytes and GiB is 2³⁰.

# %%
kinds = rows.assign(check=rows.checks.replace("", "none").str.split(", ")).explode("check")
tallies = pd.crosstab(kinds.check, kinds.outcome).reindex(columns=list(page.OUTCOMES)).reset_index()
versions = ", ".join(f"{name} {v}" for name, v in ledger.evidence.versions.items())
table(tallies, {"check": "Held against", **{name: name for name in page.OUTCOMES}}, kind=None,
      caption="Facts by the kind of check that they went through; a fact may have several",
      note=f"Sizes and schedule are derived with {versions}.")  # fmt: skip

# %%
texts = rows[["claim", "working"]].replace(r"(?<=[/_(])(?=\w{3})", "\u200b", regex=True)
texts["run"] = rows.working.str.extract(r"(results/\S+\.json)")[0].map(page_of, na_action="ignore")
for number, some in rows.assign(**texts).groupby("section"):  # where long words may break
    name = f"§{number} {SECTIONS[number]}"
    table(some, {"fact": "Id", "claim": "What the document says", "judged": "Verdict",
                 "working": "How it comes about"}, kind=None, caption=f"Ledger of {name}",
          anchor="fact", links={"judged": "run"}, fold=f"{name}: {tally(some)}")  # fmt: skip
