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
results_dirs = ["results", "results/local"]  # runs that may test its predictions

# %%
from wanreport.report.notebook import frames_of, md, parameters, show, table
from wanreport.report.notebook import page as page_of

parameters(globals(), "facts_path", "results_dirs")

import re

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from wanreport.analysis import stats
from wanreport.analysis.compare import answer, quoted, sizes
from wanreport.baseline.facts import Outcome, load_facts
from wanreport.baseline.ledger import SIGNS, load_ledger
from wanreport.jobs.schedule import flow_schedule
from wanreport.report import style
from wanreport.words import seconds

# %%
frames = frames_of(results_dirs)
ledger = load_ledger(load_facts(facts_path), frames)
facts, rows = ledger.facts, []
for name, of in facts.items():  # a row for each fact: what it says, what became of it, how we know
    entry, printed, (outcome, instead) = ledger[name], facts.text(name), ledger.became(name)
    because = f" ({', '.join(entry.rests_on)})" if entry.rests_on else ""
    rows.append({
        "fact": name, "section": int(of.part.split(".")[0]), "printed": printed,
        "quote": re.sub(r"\*\*|`", "", of.quote), "href": f"#{name}",
        "claim": f"{facts.fill(of.statement)}{': ' * bool(printed)}{printed}",
        "outcome": outcome, "sign": SIGNS[outcome], "instead": instead,
        "judged": f"{SIGNS[outcome]} {outcome}{because}{'. Right: ' * bool(instead)}{instead}",
        "checks": ", ".join(dict.fromkeys(v.check for v in entry.verdicts if v.check)),
        "working": "\n".join(f"{v.check} ({v.outcome}): " * (v.check not in ("", "measured")) + v.working
                             for v in entry.verdicts),
        "run": next((run for verdict in entry.verdicts for run in verdict.runs), None),
    })  # fmt: skip
rows = pd.DataFrame(rows).set_index("fact", drop=False)
ours = answer(frames)
clear = ours[(ours.claim != "no interval") & (ours.gpus <= 2)]

# What became of each conclusion, by the facts that it needs and by whether runs answer.
GROUPS = FALLEN, MEASURED, PAPER = "contradicted", "re-measured", "consistent on paper only"
conclusions = []
for one in ledger.evidence["conclusions"]:
    seen = ledger.seen(one.get("by", []))
    falls = [name for name in one["needs"] if rows.outcome[name] in (Outcome.FALSE, Outcome.FALLS)]
    told = [f"{measured} ({', '.join(sorted(set(some.machine)))})"
            for measured, some in seen.groupby("measured", sort=False)]  # fmt: skip
    conclusions.append({
        "group": FALLEN if falls else MEASURED if len(seen) else PAPER, "name": one["name"],
        "quote": re.sub(r"\*\*|`", "", one["quote"]), "ours": "; ".join(told),
        "href": f"#{[*falls, *one['needs']][0]}",
    })  # fmt: skip
conclusions = pd.DataFrame(sorted(conclusions, key=lambda each: GROUPS.index(each["group"])))
groups = conclusions.group.value_counts().reindex(GROUPS, fill_value=0)


def fact(name):
    """Quote a fact as printed, with its mark, as a link to its row in the ledger."""
    return f"[{' '.join([rows.printed[name], rows.sign[name]]).strip()}]({rows.href[name]})"


def cost(place, engine):
    """Say what an engine costs a step over resident weights, where collectives go that way."""
    return quoted(clear, place, engine) or "not measured"


# %%
falls = f"""**{groups[FALLEN]} of its {len(conclusions)} conclusions fall.**"""
rest = f"""{groups[MEASURED]} were measured again, most in another setup, and {groups[PAPER]}
is consistent on paper only."""
own = ledger.seen(["slower-fsdp", "slower-swap"])
own = own[own.setting == ""]  # the document's own number of GPUs and size of a video
if len(own):
    words = {"pass": "as it expected", "fail": "against what it expected"}
    rest += " In its own setup, a step of layerwise over that of each reading of the old offload: "
    rest += "; ".join(f"{row.measured}, {words.get(row.status, row.status)} ({row.machine})"
                      for row in own.itertuples()) + "."  # fmt: skip
swap = ledger.seen(["slower-swap"])
swap = swap[swap.machine.str.contains("PCIe path")]
if (swap.status == "pass").any():
    words = {"pass": "slower than the old one read as `swap`", "within noise": "within noise of it",
             "fail": "faster"}  # fmt: skip
    held = {status: " and ".join(
                f"at {sizes(frames.runs.loc[row.runs[:1]])} ({row.measured.removeprefix('swap: ')})"
                for row in rows.itertuples())
            for status, rows in swap.groupby("status")}  # fmt: skip
    held = ", ".join(f"{word} {held[status]}" for status, word in words.items() if status in held)
    shared = clear[(clear.place == "PCIe path") & (clear.engine == "layerwise")]
    most = shared.sort_values("overhead").tail(1)
    gap = "".join(f" ({seconds(each, 2)} a step)" for each in most.step_s - most.resident_s)
    md(f"""
{falls} Its ranking of the causes is one: it put sync stalls first, at {fact("s7.sync.low")} to
{fact("s7.sync.high")} a step, and contention between copies and collectives fourth, at
{fact("s7.contention.low")} to {fact("s7.contention.high")}. Our layerwise offload costs, on two GPUs that
share the PCIe link, {cost("PCIe path", "layerwise")}{gap}; when copies run between collectives,
{cost("PCIe path", "stream")}; on one GPU, {cost("1 GPU", "layerwise")}. What survives: on a shared link the
new offload is {held}, and it needs less GPU memory. {rest}
""", "answer")  # fmt: skip
else:
    md(f"{falls} {rest}", "answer")

# %%
SECTIONS = ["The document", "Hardware", "Model", "Benchmark data", "PCIe bandwidth", "Source code",
            "GPU scaling", "Causes", "Pull request", "Jobs and checks", "Open questions",
            "File index"]  # fmt: skip
RED, BLUE, GREY = "#b5403a", "#4f7596", style.INK
LOOKS = {
    Outcome.FALSE: {"facecolor": RED, "edgecolor": RED},
    Outcome.FALLS: {"facecolor": (RED, 0.25), "edgecolor": RED, "hatch": "//"},
    Outcome.OPEN: {"facecolor": "none", "edgecolor": GREY, "linestyle": ":"},
    Outcome.ELSEWHERE: {"facecolor": (BLUE, 0.25), "edgecolor": BLUE, "hatch": ".."},
    Outcome.HOLDS: {"facecolor": BLUE, "edgecolor": BLUE},
    Outcome.UNKNOWN: {"facecolor": "none", "edgecolor": GREY},
}
LOOKS = {name: look for name, look in LOOKS.items() if name in set(rows.outcome)}
stated = rows.assign(where=[f"§{n} {SECTIONS[n]}" for n in rows.section])

# %%
figure, axes = plt.subplots(figsize=(style.NARROW, 4.4))
sns.histplot(stated[stated.section > 0], y="where", hue="outcome", hue_order=list(LOOKS)[::-1],
             multiple="stack", shrink=0.7, alpha=1, linewidth=1, legend=False, ax=axes)  # fmt: skip
for look, bars in zip(LOOKS.values(), axes.containers, strict=True):
    plt.setp(bars, **look)
    counts = [f"{bar.get_width():.0f}" if bar.get_width() > 3 else "" for bar in bars]
    axes.bar_label(bars, counts, label_type="center",
                   color="white" if look["facecolor"] in (RED, BLUE) else GREY)  # fmt: skip
figure.legend(handles=[Patch(**look, label=name) for name, look in LOOKS.items()],
              loc="outside upper left", ncols=2, fontsize=9, columnspacing=1)  # fmt: skip
axes.set(xlabel="facts", ylabel="")
axes.grid(axis="x")
axes.grid(False, axis="y")
show(
    figure,
    "What became of the document's numbers and claims, by section: its timings (§3) are "
    "consistent, what it derives about bytes (§4, §6) and causes (§7) is not.",
)

# %%
gpus = " and ".join(", ".join(map(str, sorted(set(ours.gpus)))).rsplit(", ", 1)) or "no"
decide = (
    "only those in its own setup decide anything" if len(own) else "decide nothing by themselves"
)
md(f"""
**How far to trust this.** Arithmetic, model sizes, datasheets and source code need no GPU, and
decide all that falls. Our runs are of {gpus} GPUs, mostly at 480p; the document's of
{facts.text("s3.1.new.gpus")} at {facts.number("s2.height"):.0f}p. So they show what contention can
do, not what it did there, and {decide}. The document's times come from
{fact("s3.2.runs")} run of each offload, under a profiler, with a wrong flow shift
({fact("s2.flow_shift.old")} for {fact("s2.flow_shift.new")}).
""", "trust")  # fmt: skip

# %% [markdown]
# ## What became of its conclusions
#
# A conclusion is contradicted if something that it needs is. It may still be true for another
# reason. Each leads to the fact that decides.

# %%
RIGHT = {
    "PCIe is not the bottleneck": "A step moves {wan.layerwise.step.h2d_bytes / 1e9:.1f} GB per "
    "GPU and not {s4.3.peak.bytes}: {wan.layerwise.step.h2d_bytes / 1e9 / s4.3.good.bandwidth:.1f} s"
    " at {s4.3.good.bandwidth}, on a link that all-to-all takes too. It may all hide behind compute,"
    " but these numbers do not show it.",
    "The old offload is FSDP and moves only shards": "It swaps whole transformers, as our swap does, which has the same spike. Nothing moves in "
    "a steady step; at the switch {wan.swap.switch.h2d_bytes / 1e9:.1f} GB leave each GPU and as "
    "many come, on any number of GPUs.",
    "Sync stalls cost most": "No hook makes the CPU wait. A step has "
    "{wan.layerwise.step.event_waits + wan.layerwise.step.stream_waits} waits, all between streams "
    "on the GPU. None of the five estimates was measured.",
    "All-to-all is small": "It sends at least {wan.all_to_all.step.g4 / 1e9:.1f} GB a step on "
    "{s6.1.gpus.g4} GPUs, about as much as the weights. Contention concerns all of it.",
    "FSDP's gathering slows the old offload's copies": "The transformers did not run under FSDP; the"
    " typical transfer of {s4.1.typical} is a matrix of the text encoder; the slow share of the "
    "time is at most {s4.1.band.low.share}.",
    "The new offload moves 17.6 GB per GPU": "It is {wan.layerwise.step.h2d_bytes / 1e9:.1f} GB per "
    "GPU. That the total grows with the GPUs is right.",
    "Jobs on 6 GPUs test scaling": "They end at the first attention: Ulysses needs a number of GPUs "
    "that divides {wan.heads} heads.",
    "The job without flags shows where memory ends": "Without flags SGLang offloads by layers. Both "
    "transformers in BF16 are {2 * wan.expert.bytes / 1e9:.1f} GB, less than one GPU has.",
    "The new offload is slower": "The figures agree with one another. They are of {s3.2.runs} run of "
    "each, profiled, with the wrong flow shift.",
    "The new offload saves GPU memory": "In GiB, if the figures are from SGLang's log, which calls "
    "them GB.",
    "The old runs loaded the wrong configuration": "SGLang's registry and the scheduler, run again "
    "here, give the same.",
    "Layerwise offload pays off with NVLink": "By the pull request's own figures the gain is the "
    "first step and the switch; a steady step gets {s8.early.new - s8.early.old:.2f} s longer.",
    "More GPUs make the new offload worse": "That the traffic grows is right.",
    "A deeper prefetch helps": "It holds "
    "{held(s6.2.three.layers, wan.blocks)} blocks on the GPU against "
    "{held(s6.2.default.layers, wan.blocks)}, "
    "{(held(s6.2.three.layers, wan.blocks) - held(s6.2.default.layers, wan.blocks))"
    " * wan.block.bytes / 1e9:.2f} GB more and not {s9.3.b.vram}.",
}  # fmt: skip
CAPTIONS = {
    FALLEN: "Contradicted by arithmetic, by the model's sizes or by SGLang's source",
    MEASURED: "Measured again, most in another setup",
    PAPER: "Consistent on paper only: the figures agree with one another or with the source",
}
conclusions["right"] = [ledger.text(RIGHT[name]) for name in conclusions.name]
for group, some in conclusions.groupby("group", sort=False):
    columns = {"name": "Conclusion", "quote": "In its own words", "right": "What is right",
               "ours": "Our runs"}  # fmt: skip
    table(some, {name: columns[name] for name in columns if some[name].any()},
          caption=CAPTIONS[group], links={"name": "href"}, kind=None)  # fmt: skip

# %%
unlike = ledger.seen(sum((one.get("by", []) for one in ledger.evidence["conclusions"]), [])).setting
md(
    f"Our runs differ from the document's setup: {'; '.join(unlike[unlike != ''].unique()) or 'nowhere'}."
)

# %% [markdown]
# ## The document, section by section
#
# Every number and claim of the document, in its own words and in ours, right or wrong, with what
# became of it and how we know. In the verdicts "or" stands before a number where two places of the
# document differ and either may be wrong. GB is 10⁹ bytes and GiB is 2³⁰.
#
# | mark | what became of it |
# |---|---|
# | ✓ | it agrees with all that it can be held against, rounded or cut off |
# | ✗ | it is contradicted |
# | † | it follows from a contradicted one |
# | ◦ | it was measured, in another setup than the document's |
# | … | it was not measured |
# | none | no arithmetic, source, datasheet or run can judge it; the row says why |
#
# **Words.** The *new* offload keeps the layers of a transformer in host memory and copies each to
# the GPU shortly before it runs; *prefetch* is how many layers ahead. *FSDP*, PyTorch's sharding,
# gives each GPU a part of every layer and gathers it when the layer runs. *Ulysses* splits the
# video's tokens over the GPUs, which exchange parts around each attention: *all-to-all*. At the
# *switch* the second transformer takes over; *flow_shift* says when. *H2D* is from host to GPU.

# %%
breaks = rows[["quote", "claim", "working"]].replace(r"(?<=[/_(])(?=\w{3})", "\u200b", regex=True)
shown = rows.assign(**breaks, page=rows.run.map(page_of, na_action="ignore"))


def section(number):
    """Show a section of the document: a row for each fact, which others link to."""
    here = shown[shown.section == number]
    counts = here.outcome.value_counts().reindex(list(SIGNS), fill_value=0)
    tally = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
    table(here, {"fact": "Id", "quote": "In its own words", "claim": "What it says",
                 "judged": "Verdict", "working": "How we know"}, kind=None, anchor="fact",
          caption=f"§{number} {SECTIONS[number]}", links={"judged": "page"},
          fold=f"§{number} {SECTIONS[number]}: {tally}")  # fmt: skip


section(0)

# %% [markdown]
# ## 1. Hardware context
#
# One node of a cluster, whose GPUs talk to each other over the PCIe fabric that also carries the
# weights. That the two share a bus is the claim that matters most; on our PCIe path they do.

# %%
section(1)

# %% [markdown]
# ## 2. Model configuration
#
# All earlier runs used a local path, which SGLang does not know by name. It guessed from the class
# of the pipeline, and guessed the wrong member of the family.

# %%
section(2)

# %% [markdown]
# ## 3. Existing benchmark data

# %%
over = facts.number("s3.2.total.new") - facts.number("s3.3.budget.total.new")
md(f"""
The arithmetic is sound almost throughout. Two things are off: the time budget leaves
{seconds(over, 3)} of the new offload's total unexplained ({fact("s3.3.budget.total.new")} of
{fact("s3.2.total.new")}), and the trace summary counts fewer copies ({fact("s3.4.pcie.new")}) and
fewer long calls ({fact("s3.4.over_short.new")}) than §4 finds in the same traces
({fact("s4.2.async")} asynchronous copies alone, {fact("s4.2.large")} large ones).
""")
section(3)

# %% [markdown]
# ## 4. PCIe bandwidth analysis

# %%
md(f"""
The bytes fit four bytes a parameter, where §5.1 says {fact("s5.1.param_bytes")}: either the weights
moved as fp32, or bytes and bandwidths are about twice what they should be. And the analysis has
{fact("s4.3.peak.bytes")} moved in a step, where the new offload moves
{rows.instead["s4.3.peak.bytes"]}. So its conclusion, that PCIe has bandwidth enough, does not follow.
""")
section(4)

# %% [markdown]
# ## 5. Source code verified facts

# %%
source = ledger.evidence["source"]
md(f"""
Each citation was looked up in {len(source["releases"])} releases of SGLang. The source that was
read lies {source["state"]}. Most lines say what the document says they do; where it errs, the lines
are right but are not the ones that run: its old offload never reaches FSDP with the flags it was
given, and Wan's all-to-all goes another way, with {rows.instead["s5.4.per_layer"]} calls a layer
and not {fact("s5.4.per_layer")}.
""")
section(5)
files = pd.DataFrame(source["files"])
table(files, {"file": "File", "fits": "Releases that fit", "conclusion": "What follows"}, kind=None,
      caption="The releases that each cited file can have been read from",
      fold=f"The {len(files)} cited files, and the releases that fit")  # fmt: skip

# %%
steps, boundary = int(facts.number("s2.steps")), facts.number("s5.5.boundary")
shifts = [facts.number(f"s5.5.shift.{which}") for which in ("low", "high")]
times = pd.DataFrame({f"flow_shift {s:g}": flow_schedule(steps, s).timesteps for s in shifts})
times = times.rename_axis("step").reset_index()
times = times.melt("step", var_name="shift", value_name="timestep")
switches = times[times.timestep < boundary].groupby("shift").step.min()
figure, axes = plt.subplots(figsize=(style.WIDTH, 2.8))
sns.scatterplot(times, x="step", y="timestep", hue="shift", style="shift", palette=[RED, BLUE],
                ax=axes)  # fmt: skip
axes.axhline(boundary, color=GREY, linewidth=0.9)
for step in switches:
    axes.annotate(f"step {step}", (step, boundary), xytext=(-3, -12), ha="right",
                  textcoords="offset points")  # fmt: skip
axes.legend(title=None)
show(
    figure,
    f"Computed here: the timestep falls below the boundary at step {switches.min()} with the flow "
    f"shift of the old runs, and at step {switches.max()} with the right one.",
)

# %% [markdown]
# ## 6. GPU scaling analysis
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
    "from the model's sizes": [ledger[name].other.value for name in sizes.fact],
}).melt(["GPUs", "offload"], var_name="source", value_name="GB per GPU and step")  # fmt: skip
figure, axes = plt.subplots(figsize=(style.WIDTH, 3))
sns.lineplot(sizes, x="GPUs", y="GB per GPU and step", hue="offload", style="source", markers=True,
             palette=[style.ENGINES["layerwise"], style.ENGINES["fsdp"]], ax=axes)  # fmt: skip
axes.set(ylim=(0, None), xticks=sorted(set(sizes.GPUs)))
sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5))
show(figure, "For both offloads the document gives a third of the bytes that the sizes do.")
section(6)

# %% [markdown]
# ## 7. Hypothesized causes
#
# Why is the new offload slower in the steady state? The document guesses five causes and measured
# none of them. The first cannot be: SGLang's hooks make the GPU's streams wait for one another, and
# never the CPU. Our runs, which are eager and so have all but the second, measured the sum of the
# others, as below. What single pairs say is in the [post-benchmark report](postbenchmark.html).

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
    told = stats.difference(frames.runs.loc[row.run], frames.runs.loc[row.reference])
    ends = ["step_difference_s"] if row.claim == "no interval" else ["low_s", "high_s"]
    what = f"all but the second, {row.place}, {row.height}p"
    what += f", {row.gpus} GPUs" if row.gpus > 2 else ""
    spans += [{"what": what, "of": "our runs", "s": told[end]} for end in ends]
guess = [facts.number(f"s7.{cause}.high") for cause in ("contention", "sync")]
most = max([span["s"] for span in spans if span["of"] == "our runs"], default=None)

# %%
figure, axes = plt.subplots(figsize=(style.WIDTH, 2.9))
sns.pointplot(pd.DataFrame(spans), x="s", y="what", hue="of", estimator="median", capsize=0.3,
              errorbar=("pi", 100), linestyle="none", markers=["o", "s"],
              palette=[GREY, style.ENGINES["layerwise"]], ax=axes)  # fmt: skip
axes.legend(title=None, loc="center right")
axes.set(xlabel="seconds a step", ylabel="")
axes.grid(axis="x")
show(
    figure,
    "What the causes cost a step: the document guesses up to "
    f"{seconds(guess[0], 2)} for contention and {seconds(guess[1], 2)} for sync stalls; in our runs all "
    f"but the second together cost {'no known time' if most is None else f'up to {seconds(most, 2)}'}.",
)
section(7)

# %% [markdown]
# ## 8. PR #15511 reference numbers

# %%
md(f"""
The pull request that brought the new offload measured it on {fact("s8.gpus")} GPUs with NVLink. Its
figures fit together. The gain is the first step and the switch; a steady step gets slightly longer
({fact("s8.early.new")} after {fact("s8.early.old")}).
""")
section(8)

# %% [markdown]
# ## 9. Pending new benchmarks
#
# Three of the six jobs cannot answer what they are for: the GPUs of two of them do not divide the
# attention heads, and the one without flags offloads by layers. The checks are answered at length
# in the [post-benchmark report](postbenchmark.html).

# %%
section(9)

# %% [markdown]
# ## 10. Open questions for future work

# %%
section(10)

# %% [markdown]
# ## 11. File index

# %%
section(11)

# %% [markdown]
# ## How the facts were checked

# %%
kinds = rows.assign(check=rows.checks.replace("", "none").str.split(", ")).explode("check")
tallies = pd.crosstab(kinds.check, kinds.outcome).reindex(columns=list(SIGNS)).reset_index()
versions = ", ".join(
    f"{name} {v}" for name, v in sorted(ledger.evidence["architecture"]["versions"].items())
)
table(tallies, {"check": "Held against", **{name: name for name in SIGNS}}, kind=None,
      caption="Facts by the kind of check that they went through; a fact may have several",
      note=f"Sizes and schedule are derived with {versions}.")  # fmt: skip
