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
# Wan2.2-T2V-A14B denoises with two large transformers, its experts. *Layerwise offload* leaves their
# weights in host memory and copies each layer to the GPU shortly before it runs.

# %% tags=["parameters"]
results_dirs = ["results", "results/local"]

# %%
from wanreport.report.notebook import Stop, frames_of, md, page, parameters, show, table

parameters(globals(), "results_dirs")

import pandas as pd

from wanreport.analysis import checks, compare, overlap, pairs, predictions, recommend
from wanreport.analysis.compare import CELL, answer, claimed, quoted, sizes, without_record
from wanreport.baseline.facts import load_checks, load_facts
from wanreport.baseline.ledger import questions
from wanreport.jobs.settings import layerwise_held
from wanreport.records.project import project_root
from wanreport.report import figures
from wanreport.words import MINUS, counted, gibibytes, gigabytes, ratio, seconds, share, significant

f, facts = frames_of(results_dirs), load_facts()
THEIRS = f"{facts.number('s2.height'):.0f}p on {facts.number('s9.1.new4.gpus'):.0f} GPUs"


def gap(value, unit=" s"):
    """Write a difference with two decimals, as steps repeat no better."""
    said = f"{round(value, 2) + 0.0:+.2f}{unit}".replace("-", MINUS)
    return "not measured" if pd.isna(value) else said.replace("+0.00", "0.00")


def than(difference):
    """Write a difference in seconds with its direction: "0.26 s longer"."""
    return f"{abs(difference):.2f} s {'longer' if difference > 0 else 'shorter'}"


def says(name):
    """Write a fact's statement, with the facts in it as printed."""
    return facts.fill(facts[name].statement)


def to_measure(*names):
    """Write the command that measures jobs of the campaign."""
    return f"wanreport measure {' '.join(f'params/campaign/{name}.yaml' for name in names)}"


def spelled(names):
    """Join names, each once."""
    return ", ".join(dict.fromkeys(map(str, names))) or "none"


# %%
md(f"""
A frozen analysis of SGLang, the [baseline](baseline.html), found it
{facts.text("s3.3.steady.percent").lstrip("+")} slower per step than the offload that it replaced. **What makes it
slower, and can that be avoided?**
""")

# %%
found = answer(f)
at = {(row.place, row.height, row.engine): row for row in found[found.gpus <= 2].itertuples()}
shared, windows = (at.get(("PCIe path", 480, engine)) for engine in ("layerwise", "stream"))
if not (shared and windows):
    raise Stop(
        "This report compares layerwise with stream at 480p on two GPUs whose collectives share the"
        " PCIe link, and there is no such pair of runs. Restore results/ from git, or run:"
        " NCCL_P2P_DISABLE=1 wanreport measure params/campaign/480p-2gpu-{resident,layerwise,stream}.yaml"
    )
verdict = f"Beside collectives layerwise is {shared.claim}, stream {windows.claim}."
if shared.claim == "slower" and windows.claim != "slower":
    verdict = "Weight copies that collide with collectives make it slower; copying between them avoids it."
others = found[(found.height != 480) | (found.gpus > 2)]
beside = [quoted(others, "PCIe path", engine) for engine in ("layerwise", "stream")]
elsewhere = {"at other sizes and on more GPUs of this path": ", and `stream` ".join(filter(None, beside)),
             "over NVLink": quoted(found, "NVLink", "layerwise"),
             "on one GPU": quoted(found, "1 GPU", "layerwise")}  # fmt: skip
elsewhere = "; ".join(f"{where} {said}" for where, said in elsewhere.items() if said)
short = found[found.claim == "no interval"].groupby("place")
few = "; ".join(f"{sizes(rows)} ({place})" for place, rows in short)
md(f"""
**{verdict}** On two GPUs whose all-to-alls share the PCIe link with the weights
({shared.machine.partition(",")[0]}), layerwise offload takes {seconds(shared.step_s, 3)} a step at 480p,
{ratio(shared.overhead)} over keeping all weights on the GPU; `stream`, which copies only while no all-to-all
runs, takes {seconds(windows.step_s, 3)}, {ratio(windows.overhead)}{", within noise" * (windows.claim == "within noise")}.
Elsewhere `layerwise` costs: {elsewhere or "not measured"}.{f" Too few steps to tell: {few}." * bool(few)}
""", look="answer")  # fmt: skip

# %%
# Every prediction, beside the latest run that was made after it on such a machine.
cost = compare.overhead(f)
told = predictions.judged(cost, predictions.load(project_root()))

# %%
head = compare.headline(f)
ahead = told[(told.gpus == 2) & (told.height == 480) & (told.interconnect == "NVLink")
             & told.gpu.str.contains("H100") & (told.prefetch.fillna(1) == 1)
             & (told.engine != "resident")]  # fmt: skip
ahead = ahead.assign(machine="2× H100, NVLink", overhead=ahead.predicted_overhead)
ahead = ahead[~ahead.engine.isin(head.engine[head.machine == "2× H100, NVLink"])]
ahead = ahead.drop_duplicates("engine", keep="last")
claims = claimed(found, "layerwise")
show(figures.overhead(head, predicted=ahead),
     caption=f"A step of layerwise against resident's: {claims}. Bold: beyond noise; whiskers: what both "
             "95 % intervals allow; *: too few steps for an interval; –: not measured"
             + "; hollow, in brackets: predicted" * bool(len(ahead)) + ".")  # fmt: skip
compiled = cost[cost.compiled & cost.latest & (cost.engine == "layerwise")]
if len(compiled):
    costs = "; ".join(f"{ratio(row.overhead)} on {row.machine} at {row.height}p, {row.claim}"
                      for row in compiled.sort_values("overhead").iloc[::-1].itertuples())  # fmt: skip
    md(f"""
The baseline's runs were compiled; these are eager. Compiled, `layerwise` costs {costs}. What copies hide
behind is shorter then, and collisions are not.
""")
layouts = compare.layouts(f)
best = layouts[(layouts.engine == "layerwise") & (layouts.gpus == 2)]
for row in best[best.claim == "faster"].itertuples():
    md(f"""
Fewer collectives help more than better timing: with one branch of guidance on each of the two GPUs
({row.machine}) a step of `layerwise` takes {seconds(row.step_s_cfg, 3)} instead of
{seconds(row.step_s_ulysses, 3)}. [Which layout wins](#which-layout-wins) has the rest.
""")

# %%
jobs = cost[(cost.source == "job") & cost.latest]
held = jobs[jobs.reference.notna() & (jobs.reference != jobs.run)]
again = cost[cost.source == "job"].groupby(["group", "job"]).step_s
spread = (again.max() / again.min() - 1).max()
ended = f.runs[~f.runs.rehearsal & f.runs.status.isin(["ok", "oom"])]
left = without_record(ended).dropna(subset="baseline_job").drop_duplicates("baseline_job")
left = left[~left.baseline_job.isin(ended.baseline_job)]
gaps = {
    f"the baseline's own {len(left)} jobs, which need {' and '.join(map(str, sorted(set(left.gpus))))} GPUs": len(left),
    "the full model over NVLink": not (found.place == "NVLink").any(),
    "anything at 720p": not (found.height == 720).any(),
}  # fmt: skip
gaps = [what for what, missing in gaps.items() if missing]
md(f"""
**How far to trust it.** The full model with random weights, one run a mark, a median of
{head.step_n.min()} to {head.step_n.max()} steady steps; {int(held.same_bits.sum())} of {len(held)} runs of
other engines have the bits of `resident`. On the same boards `resident` ran once more for
{int(head.bracketed.sum())} of {len(head)} marks; how far the GPUs drifted beside the others is unknown. The
same job on other boards of one kind moved by up to {share(spread)}. **Not run:**
{"; ".join(gaps) or "nothing that was asked"}.
""", look="trust")  # fmt: skip

# %% [markdown]
# ## Why: copies and collectives on one link
#
# With sequence parallelism, each layer exchanges activations in *all-to-alls*. Where the GPUs have no
# NVLink, these cross the PCIe link that the weights use too. Below is the same amount of work under
# both engines, on one time axis. `layerwise` starts the next layer's copy at once, so it runs into
# all-to-alls. `stream` holds its copies back until an all-to-all has ended.


# %%
def excerpt(run, blocks=4):
    """Cut consecutive blocks out of the first step: of all such, those of median length.

    `blocks` are of one branch, so that excerpts of several engines hold equal work. A pass's first
    block, at which ranks wait, is left out. Times are in milliseconds from the cut.
    """
    row = f.runs.loc[run]
    events, times = overlap.timeline(f, row), ["start_ms", "end_ms"]
    visits = events[(events.lane == "compute") & (events.step == events.step.min())]
    passes = max(1, round(len(visits) / row.blocks))
    number = max(1, round(blocks * passes / row.branches))
    last = visits.shift(1 - number)
    whole = (visits.block > 0) & (last.block - visits.block == number - 1)
    spans = visits.assign(end_ms=last.end_ms)[whole]
    lengths = (spans.end_ms - spans.start_ms).sort_values(kind="stable")
    start, end = spans.loc[lengths.index[(len(spans) - 1) // 2], times]
    cut = events[(events.end_ms > start) & (events.start_ms < end)].copy()
    cut[times] = cut[times].clip(start, end) - start
    return cut.assign(ms=cut.end_ms - cut.start_ms, branches=max(1, row.branches // passes),
                      engine=row.engine, name=f"{row.engine}, {row.machine}")  # fmt: skip


# %%
lanes = overlap.shares(f)
shares = lanes[lanes.latest].sort_values(["gpus", "machine", "engine"])
beside = at.get(("NVLink", 480, "layerwise"))
drawn = [row.run for row in (shared, windows, beside) if row and row.run in shares.index]
hides = [f"{row.engine} {share(row.hidden)} ({row.machine})" for row in shares.loc[drawn].itertuples()]  # fmt: skip
show(figures.timelines(*map(excerpt, drawn)),
     caption=f"Copies cross all-to-alls, or fit between them. Hidden behind blocks alone: {spelled(hides)}. "
             "Rank 0, a few blocks of a profiled step at 480p.")  # fmt: skip

# %%
none = shares.gpus.map(lambda gpus: "no all-to-all" if gpus == 1 else "no such")
for name in ("rate_outside_gb_s", "rate_inside_gb_s", "collectives_s", "beside"):
    shares[f"{name} "] = shares[name].map(lambda value: significant(value, 3)).where(shares[name].notna(), none)  # fmt: skip
shares["beside "] += (shares.slowed == "copies").map({True: " (copies)", False: ""})
shares["hides"] = shares.hidden.map(share).where(shares.hidden.notna(), "not noted")
table(shares,
      {"name": "engine", "machine": "machine", "hides": "copies hidden",
       "rate_outside_gb_s ": "load without all-to-all, GB/s",
       "rate_inside_gb_s ": "load beside one, GB/s", "collectives_s ": "all-to-alls a step, s",
       "beside ": "one beside a copy, × alone"},
      caption="How fast loads and all-to-alls are, apart and together", kind="derived",
      note="Device events of rank 0 around the switch, profiled. Hidden: share of copy time in which a "
           "block computes and no all-to-all runs. A load beside all-to-alls: an estimate. The last column "
           "holds all-to-alls beside a copy against lone ones of their size; (copies): copies beside one.")  # fmt: skip

# %%
if {shared.run, windows.run} <= set(drawn):
    new, ours = shares.loc[shared.run], shares.loc[windows.run]
    collided, whole = new.collectives_s - ours.collectives_s, shared.step_s - windows.step_s
    part = f"{share(round(collided / whole, 2))} of the gap" if whole > 0 else "not the gap"
    md(f"""
Under `layerwise` the all-to-alls take {than(collided)} a step than under `stream`, and the whole step is
{than(whole)}: they are {part}. `stream` copies {gigabytes(ours.h2d_step_bytes, 3)} a step and `layerwise`
{gigabytes(new.h2d_step_bytes, 3)}, as both branches of guidance use a layer while it is there; below are
pairs of runs that copy the same bytes, with windows between all-to-alls and without.
""")  # fmt: skip
large = found[(found.height == 720) & (found.place == "PCIe path") & (found.gpus == 2)]
if len(large):
    costs = (large.assign(engine="`" + large.engine + "` " + large.overhead.map(ratio))
             .groupby("claim", sort=False).engine.agg(", ".join))  # fmt: skip
    costs = "; ".join(f"{those}, {claim}" for claim, those in costs.items())
    md(f"""
A step at 720p computes for longer, which gives a late copy more time. On two GPUs of the
PCIe path, over `resident`: {costs.replace("no interval", "too few steps to tell")}.
{"No run at 720p was profiled." * (not (shares.height == 720).any())}
""")  # fmt: skip

# %% [markdown]
# ## The baseline's five causes
#
# The baseline guessed five causes for the slower step and ranked them by seconds (§7). Each is held
# here against pairs of runs that come close to removing it alone. Most of them differ in other settings
# too; then the effect is of all of these together. An effect above zero means that the step is longer
# with the cause.

# %%
CAUSES = {
    "sync": "1. sync stalls", "compile": "2. eager/compiled transitions", "alloc": "3. allocation churn",
    "contention": "4. contention with all-to-alls", "late": "5. prefetch too late",
}  # fmt: skip
every_pair = pairs.pairs(f)
guess = {cause: f"{facts.number(f's7.{cause}.low'):.1f} to {facts.text(f's7.{cause}.high')}" for cause in [*CAUSES, "total"]}  # fmt: skip
causes = every_pair[every_pair.cause != ""].copy()
causes["what"], causes["guess"] = causes.cause.map(CAUSES), causes.cause.map(guess)
causes = causes.sort_values(["what", "changed", "machine", "work"], ignore_index=True)
causes["pair"] = causes.name_a + " → " + causes.name_b
same = causes.machine == causes.machine_b
causes["where"] = causes.machine.where(same, causes.machine + " → " + causes.machine_b)
causes["others"] = causes.together_with.map(lambda names: "; ".join(names) or "nothing else")
causes["effect"] = [
    gap(row.effect_s) + ("" if pd.isna(row.effect_low_s) else
                         f" [{gap(row.effect_low_s, '')}, {gap(row.effect_high_s, '')}]")
    for row in causes.itertuples()
]  # fmt: skip
# Other boards and clocks are no setting, so they do not count where the closest pair is looked for.
extra = causes.together_with.map(lambda all_: sum(not each.startswith(("boards", "clock")) for each in all_))  # fmt: skip
clear = causes[causes.claim != "no interval"].assign(extra=extra)
summary = [
    {"what": what, "guess": here.guess.iloc[0], "pairs": len(here), "others": str(here.extra.min()),
     "effects": " to ".join(dict.fromkeys(map(gap, [here.effect_s.min(), here.effect_s.max()]))),
     "beyond": spelled(f"{(here.claim == claim).sum()} {claim}" for claim in here.claim.unique())}
    for what, here in clear.groupby("what")
]  # fmt: skip
old = at.get(("PCIe path", 480, "swap"))
summary.append({
    "what": "all together (§7)", "pairs": 1, "others": "the engine", "beyond": f"1 {shared.claim}",
    "guess": guess["total"],
    "effects": f"{gap(shared.step_s - shared.resident_s)} over resident"
    + (f", {gap(shared.step_s - old.step_s)} over swap" if old else ""),
})  # fmt: skip
beyond = clear.what[clear.claim.isin(["slower", "faster"])]
table(pd.DataFrame(summary),
      {"what": "cause", "guess": "the baseline's guess", "effects": "effect on a step, our pairs",
       "beyond": "with it, the step is", "pairs": "pairs", "others": "fewest other settings"},
      kinds={"guess": "quoted"}, kind="derived",
      caption=f"Causes with an effect beyond noise in some pair: {spelled(sorted(beyond))}",
      note=f"The last row: layerwise on the PCIe path at 480p. The baseline's guesses are for {THEIRS}. Over NVLink "
           "resident's step is shorter, so that few tokens have less to hide copies behind.")  # fmt: skip

# %%
closest = clear.assign(part=clear.scale != 1).sort_values(["what", "extra", "part", "scale", "run_a"])  # fmt: skip
closest = closest.drop_duplicates(["what", "changed", "machine", "machine_b"])
closest_columns = {"what": "cause", "pair": "pair", "where": "machine", "work": "work", "effect": "effect on a step",
                   "claim": "with it, the step is", "others": "together with"}  # fmt: skip
table(closest, closest_columns,
      caption="Of each setting and machine, the pair that differs in the fewest other settings",
      kind="derived",
      note=f"The full model first. Other cells are scaled to {pairs.BLOCKS} blocks and {pairs.BRANCHES} branches.")  # fmt: skip
table(causes, closest_columns | {"change": "what changed"},
      caption="Every pair, with all settings in which it differs", kind="derived", fold="All pairs",
      note="Effect: the first run's step less the second's; where the number of GPUs or their "
           "interconnect changed, the difference of both overheads times the first resident's step.")  # fmt: skip


# %%
ONE, TWO = "480p-1gpu-layerwise", "480p-2gpu-layerwise"
PAIRS = [  # jobs that tell of a cause, to run on one machine; and the path between its GPUs if it counts
    ("sync", "", (ONE, "480p-1gpu-stream")),
    ("compile", "", (ONE, "480p-1gpu-resident", f"{ONE}-compiled", "480p-1gpu-resident-compiled")),
    ("alloc", "", (ONE, "480p-1gpu-stream")),
    ("contention", "PCIe path", (TWO, "480p-2gpu-resident", "480p-2gpu-stream")),
    ("contention", "NVLink", (TWO, "480p-2gpu-resident")),
    ("late", "", (ONE, f"{ONE}-prefetch3")),
    ("late", "PCIe path", (TWO, f"{TWO}-prefetch3")),
]
ran = f.full_scale().groupby(["interconnect", "machine"]).job.agg(set)
missing = [
    {"what": CAUSES[cause], "machine": path, "command": to_measure(*names)}
    for cause, path, names in PAIRS
    if not any(there.issuperset(names) for (at_path, _), there in ran.items() if path in ("", at_path))
]  # fmt: skip
table(pd.DataFrame(missing, columns=["what", "machine", "command"]),
      {"what": "cause", "machine": "where", "command": "command"},
      caption="Pairs that are not measured yet, and what would measure them", kind=None,
      empty="All pairs were measured.")  # fmt: skip

# %% [markdown]
# ## Old against new, in the baseline's own tables
#
# The baseline's *new* offload is `layerwise`. Its *old* one can be read as `swap`, which moves a
# whole expert at the switch, or as `fsdp`, which gathers shards as layers run. The old one shows
# itself by a steady step no longer than the new one's, a spike at the switch, and more memory.

# %%
GIB, OLD = 2**30, ["swap", "fsdp"]
steady, switch, peak = (pd.Series([facts.number(f"{name}.{side}") for side in ("new", "old")])
                        for name in ("s3.3.steady", "s3.3.switch", "s3.2.peak"))  # fmt: skip
theirs = pd.DataFrame({
    "name": ["baseline, new", "baseline, old"], "engine": "", "machine": "the baseline's", "work": THEIRS,
    "difference": steady / steady[0] - 1, "claim": "one run", "same_boards": "unknown",
    "spike": switch / steady - 1, "old": ["no", "yes"],
    "experts": (peak - peak[0]) * GIB / f.runs.expert_bytes.max()})  # fmt: skip
middle, rows = theirs[["spike", "experts"]].mean(), []
news = head[head.engine == "layerwise"].sort_values(["machine", "gpus", "height"])
for _, new in news.iterrows():
    for _, row in head[(head.group == new.group) & (head.engine != "layerwise")].iterrows():
        row["spike"] = row.switch_s / row.step_s - 1
        row["experts"] = (row.reserved_bytes - new.reserved_bytes) / row.expert_bytes
        against = compare.told(row, new)
        like = all(row[middle.index] > middle) and against["claim"] != "slower"
        like = None if like and against["claim"] == "no interval" else like
        rows.append({**row, **against, "old": like})
old = pd.concat([theirs, pd.DataFrame(rows)], ignore_index=True)
like = old[old.old.eq(True)]
table(old.assign(memory=old.experts.map(lambda experts: gap(experts, "")), difference_spike=old.spike),
      {"name": "engine", "machine": "machine", "work": "work",
       "difference": "steady step over layerwise's", "claim": "that is",
       "same_boards": "same boards", "difference_spike": "switch over a steady step",
       "memory": "memory above layerwise's, experts", "old": "as the old one"},
      caption=f"What behaves as the baseline's old offload: {spelled(like.engine)}", kind="derived",
      note="Memory: peak reserved by the allocator, as SGLang reports it, in units of one expert. As the old one: in "
           "both of the last columns nearer to it than to the new one, and not slower than layerwise.")  # fmt: skip

# %% [markdown]
# A *steady* step is neither the first nor the switch. *End to end* is the clean iteration, the one
# after the warm-up, over the whole schedule, with decoding where the job decoded. Where a run took a
# sample of the schedule, each step left out counts as the mean of its steady ones.

# %%
SECTIONS = {  # the baseline's rows by the names of its facts: what they are, and our column
    "s3.3": ("Per step (§3.3)", {
        "first": ("first step", "first_s"), "early": ("median before the switch", "early_s"),
        "switch": ("switch step", "switch_s"), "late": ("median after it", "late_s"),
        "steady": ("median steady step", "step_s")}),
    "s3.2": ("End to end (§3.2)", {
        "denoise": ("denoising", "denoise_s"), "step": ("average step", "average_s"),
        "decode": ("decoding", "decode_s"), "total": ("end to end", "end_to_end_s")}),
    "s3.3.budget": ("Time budget (§3.3)", {
        "first": ("first step", "first_s"), "switch": ("switch step", "switch_s"),
        "other": ("other steps", "steady_s"), "decode": ("decoding", "decode_s"), "total": ("sum", "sum_s")}),
}  # fmt: skip
halves = f.steps.query("kind == 'clean' and role == 'steady'").groupby(["run", "expert"]).seconds
halves = halves.median().unstack().rename(columns={"high_noise": "early_s", "low_noise": "late_s"})
times = f.runs.join(halves).assign(
    average_s=f.runs.denoise_s / f.runs.steps_whole,
    sum_s=f.runs.denoise_s + f.runs.decode_s.fillna(0),
)
both = news.group.isin(head.group[head.engine.isin(OLD)])
if both.any() and not both.all():  # elsewhere there is nothing to hold it against
    left = (news.machine + ", " + news.height.astype(str) + "p")[~both]
    md(f"Without a run of the old offload, and so without a table: {'; '.join(left)}.")
parts, claims = [], {}
for _, new in news[both | ~both.any()].iterrows():
    others = head[(head.group == new.group) & head.engine.isin(OLD)].set_index("engine", drop=False)
    sides = {"resident": new.reference, "new": new.run, **others.run}
    claims[new.group] = {engine: compare.told(new, others.loc[engine]) for engine in others.index}
    for section, (_, rows) in SECTIONS.items():
        part = pd.DataFrame(
            {"section": section, "quantity": [*rows], "what": [what for what, _ in rows.values()]}
        )
        part = part.assign(**{f"run_{side}": run for side, run in sides.items()}, **{
            f"{side}_s": times.loc[run, [column for _, column in rows.values()]].to_numpy(float)
            for side, run in sides.items()})  # fmt: skip
        parts.append(
            part.assign(
                **new[["machine", "gpus", "height", "work", "group"]],
                decoded=pd.notna(new.decode_s),
            )
        )
tables = pd.concat(parts, ignore_index=True)
tables = tables.reindex(columns=[*tables.columns.union([f"{engine}_s" for engine in OLD])])
for end, side in (("new", "new"), ("old", "old"), ("minus", "delta")):
    names = tables.section + "." + tables.quantity + f".{side}"
    tables[f"baseline_{end}_s"] = names.map(facts.number)
for engine in OLD:
    steady = {
        group: f", {pair[engine]['claim']}" for group, pair in claims.items() if engine in pair
    }
    steady = tables.group.map(steady).where(tables.quantity == "steady").fillna("")
    tables[f"less_{engine}"] = (tables.new_s - tables[f"{engine}_s"]).map(gap) + steady
for (machine, height), here in tables.groupby(["machine", "height"]):
    md(f"### {machine}, {height}p")
    first, said = here.iloc[0], {}
    for engine in ("fsdp", "swap"):
        same = claims[first.group].get(engine, {}).get("same_boards")
        said[engine] = {True: "on the same boards as layerwise", False: "on other boards than layerwise"}.get(same, "not measured")  # fmt: skip
    for section, (title, _) in SECTIONS.items():
        table(here[here.section == section],
              {"what": "time of", "resident_s": "resident", "new_s": "layerwise", "swap_s": "swap",
               "fsdp_s": "fsdp", "less_swap": "layerwise − swap", "less_fsdp": "layerwise − fsdp",
               "baseline_new_s": "baseline, new", "baseline_old_s": "old",
               "baseline_minus_s": "new − old"},
              kinds=dict.fromkeys(["baseline_new_s", "baseline_old_s", "baseline_minus_s"],
               "quoted"), caption=f"{title}: {machine}, {height}p",
              note=f"{first.work}; one clean iteration, {'with' if first.decoded else 'without'} decoding. "
                   f"{'. '.join(f'{engine}: {words}' for engine, words in said.items())}. A claim needs "
                   "repeated steps; a first step, a switch or a sum is one value. The baseline ran "
                   f"{THEIRS}, compiled, once, under a profiler.",
              fold="" if section == "s3.3" else title)  # fmt: skip

# %%
here = tables[(tables.machine == f.runs.machine[shared.run]) & (tables.height == 480)].set_index(["section", "quantity"])  # fmt: skip
if len(here) and pd.notna(here.swap_s["s3.2", "total"]):
    row, steady = here.loc["s3.2", "total"], here.loc["s3.3", "steady"]
    spikes = f.runs.loc[row.run_swap, ["first_s", "switch_s"]] - steady.swap_s
    md(f"""
Which one is faster depends on what is timed. On the PCIe path at 480p a steady step of `swap` takes
{seconds(steady.swap_s, 3)}, of `layerwise` {seconds(steady.new_s, 3)}; a whole iteration takes
{seconds(row.swap_s)}, {seconds(row.new_s)} and with `resident` {seconds(row.resident_s)}. Moving an expert
costs `swap` {seconds(spikes.first_s, 2)} at the first step and {seconds(spikes.switch_s, 2)} at the switch.
""")  # fmt: skip

# %% [markdown]
# The pull request that brought layerwise offload reported it on more GPUs, with NVLink (§8). Its
# speed-up is the old offload's two spikes.

# %%
pick = tables[(tables.gpus == 2) & (tables.height == 480) & (tables.section != "s3.3.budget")
              & tables.quantity.isin(["first", "early", "switch", "late", "total"])].copy()  # fmt: skip
for end in ("old", "new", "speedup"):
    pick[end] = [facts.text(f"s8.{key}.{end}") for key in pick.quantity]
pick["ours_x"] = pick.swap_s / pick.new_s
table(pick, {"what": "time of", "machine": "ours on", "old": "old", "new": "new", "speedup": "speed-up", "swap_s": "swap", "new_s": "layerwise",
             "ours_x": "speed-up"},
      kinds=dict.fromkeys(["old", "new", "speedup"], "quoted"),
      caption=f"The pull request's numbers (§8) beside ours on {spelled(pick.machine)}",
      note=f"{facts.text('s8.gpus')} GPUs with NVLink there, {facts.text('s8.total_percent.speedup')} in all; 480p here. "
           + "Missing: wanreport measure params/campaign/480p-2gpu-swap.yaml." * bool(pick.swap_s.isna().any()))  # fmt: skip

# %% [markdown]
# ## More GPUs
#
# Layerwise offload moves all weights to every GPU, FSDP a share to each. From this the baseline
# concludes that the new offload loses and the old one gains with more GPUs (§6.1). Predictions for
# numbers of GPUs that were not measured were written down before any such run and are never changed.


# %%
import seaborn as sns
from matplotlib import pyplot as plt

from wanreport.report.style import ENGINES, INK, MARKERS, NARROW, WIDTH, colour


def scaling(curve):
    """Draw overhead over resident by number of GPUs: measured filled, predicted hollow and dashed."""
    curve = curve.assign(percent=100 * curve.overhead).astype({"gpus": int}).sort_values("gpus")
    figure, axes = plt.subplots(figsize=(WIDTH, 3))
    for kind, some in curve.groupby("kind"):
        hollow = kind == "predicted"
        sns.lineplot(some, x="gpus", y="percent", hue="engine", style="engine", palette=ENGINES,
                     markers=MARKERS, dashes=False, linestyle=figures.DASHES if hollow else "",
                     linewidth=1.2, markersize=6.5, markerfacecolor="none" if hollow else None,
                     markeredgecolor=None, markeredgewidth=1, estimator=None, legend=False,
                     ax=axes)  # fmt: skip
    low, high = axes.get_ylim()
    low, high, above = min(low, -1), max(1.05 * high, 5), float("-inf")
    for row in curve.groupby("engine").tail(1).sort_values("percent").itertuples():
        above = max(row.percent, above + (high - low) / 14)  # no label on another
        figures.beside(axes, row.gpus, above, f"{row.engine} {ratio(row.overhead)}", 8)
    axes.set(ylabel="over resident, %", xlabel="GPUs; hollow: predicted", ylim=(low, high),
             xticks=sorted(set(curve.gpus)))  # fmt: skip
    return figure


# %%
like = told[(told.height == 720) & (told.prefetch.fillna(1) == 1) & ~told.cfg_parallel.astype(bool)]
ahead = like[like.gpu.str.contains("H100") & (like.interconnect == "PCIe path")].sort_values(
    "made_at"
)
ahead = ahead.drop_duplicates(["gpus", "engine"], keep="last").assign(kind="predicted")
seen = head[
    head.gpu_model.str.contains("H100") & (head.interconnect == "PCIe path") & (head.height == 720)
]
curve = pd.concat([seen.assign(kind="measured"), ahead.assign(overhead=ahead.predicted_overhead)])
curve = curve[curve.engine.isin(["layerwise", "fsdp", "swap", "stream"])]
curve = curve[["gpus", "engine", "overhead", "kind"]].assign(name=curve.engine)
ends = curve[curve.kind == "predicted"].sort_values("gpus").groupby("engine", sort=False)
ends = "; ".join(
    f"{engine} {ratio(here.overhead.iloc[0])} on {here.gpus.min()} GPUs, {ratio(here.overhead.iloc[-1])} on {here.gpus.max()}"
    for engine, here in ends if here.overhead.abs().max() > 0
)  # fmt: skip
if len(curve):
    show(scaling(curve), caption=f"Predicted over resident on the PCIe path, H100, 720p: {ends}. Hollow: predicted.")  # fmt: skip

# %%
met = told[told.run.notna()].copy()
met["page"] = met.run.map(page)
met["range"] = [f"{low:.2f} to {high:.2f}" for low, high in zip(met.low_s, met.high_s, strict=True)]
met["machine"] = f.runs.machine[list(met.run)].to_numpy()
table(met,
      {"job": "job", "machine": "machine", "predicted_s": "predicted step", "range": "range, s",
       "measured_s": "measured step", "error": "error",
       "held": f"within {share(predictions.TOLERANCE)}", "predicted_overhead": "predicted overhead",
       "overhead": "measured"}, links={"job": "page"},
      kinds=dict.fromkeys(["predicted_s", "range", "predicted_overhead"], "predicted"),
      caption=f"{int(met.held.sum())} of {len(met)} predictions that were tested hold",
      note=f"{len(told) - len(met)} more wait for their machines. The range: all-to-alls that take no "
           "time, and twice the time. Error: predicted over measured, less 1.")  # fmt: skip

# %%
ours = jobs[(jobs.height == 480) & jobs.engine.isin(["layerwise", "fsdp", "stream"]) & ~jobs.compiled & jobs.overhead.notna()
            & jobs.vram_budget_gb.isna() & (jobs.prefetch.fillna(1) == 1) & ~jobs.job.str.endswith("-profiled")
            & ~jobs.cfg_parallel]  # fmt: skip
ours["all_bytes"] = ours.h2d_step_bytes_all
moved = ours[ours.engine == "layerwise"]
table(ours.sort_values(["gpus", "machine", "engine"]),
      {"name": "engine", "machine": "machine", "gpus": "GPUs",
       "h2d_step_bytes": "to each GPU a step", "all_bytes": "to all GPUs",
       "overhead": "over resident", "claim": "that is"},
      caption=f"Layerwise moves {spelled(gigabytes(size, 3) for size in moved.h2d_step_bytes)} a step to each GPU, "
              f"on {spelled(sorted(set(moved.gpus)))} GPUs alike",
      note="Counted by the engine in a steady step of both branches, 480p. Layerwise moves the same at "
           "any resolution; stream moves what its plan leaves in host memory.")  # fmt: skip

# %%
like = like.drop_duplicates(["gpus", "engine"]).set_index(["gpus", "engine"])
NAMES = {"new_each": ("new, each GPU", "layerwise", "h2d_bytes"), "old_each": ("old, each GPU", "fsdp", "h2d_bytes"),
         "new_all": ("new, all GPUs", "layerwise", "h2d_bytes"), "old_all": ("old, all GPUs", "fsdp", "h2d_bytes"),
         "ulysses": ("all-to-alls, each GPU", "layerwise", "all_to_all_bytes")}  # fmt: skip
rows = []
for key, (title, engine, column) in NAMES.items():
    row = {"what": title}
    for n in (2, 4, 6):
        size = like[column].get((n, engine), float("nan")) * (n if "all GPUs" in title else 1)
        row |= {f"seed{n}": facts.text(f"s6.1.{key}.g{n}"), f"ours{n}_bytes": size}
    rows.append(row)
table(pd.DataFrame(rows),
      {"what": "a step", **{f"seed{n}": f"{n} GPUs, baseline" for n in (2, 4, 6)},
       **{f"ours{n}_bytes": f"{n} GPUs, ours" for n in (2, 4, 6)}},
      kinds={**dict.fromkeys(["seed2", "seed4", "seed6"], "quoted"), **dict.fromkeys(["ours2_bytes",
       "ours4_bytes", "ours6_bytes"], "predicted")}, kind=None,
      caption="Bytes a step: what the baseline computed (§6.1), and what the engines' formulas give at 720p",
      note=f"What the baseline calls {facts.text('s6.1.ulysses.g2')} an all-to-all is here the sum over a step, "
           "of both branches and all blocks.")  # fmt: skip

# %% [markdown]
# ## Which layout wins?
#
# GPUs can share a step in two ways. With Ulysses, all of them share the tokens, and each computes both
# branches of guidance. With CFG parallelism, each branch has half of the GPUs. On two GPUs no all-to-all
# is left, and a GPU brings each layer once a step instead of twice; on four, two GPUs share a branch.

# %%
both = layouts.rename(columns={"step_s_cfg": "cfg_s", "step_s_ulysses": "ulysses_s"})
ahead = told.dropna(subset="run").drop_duplicates("run", keep="last").set_index("run").predicted_s
kinds = f.steps.groupby("run").kind.agg(lambda kinds: " ".join(sorted(set(kinds))))
both["alike"] = both.run_one.map(kinds) == both.run_two.map(kinds)
both["predicted_share"] = both.run_one.map(ahead) / both.run_two.map(ahead) - 1
for row in both[both.engine == "resident"].itertuples():
    verdict = {"faster": "CFG parallelism wins", "slower": "Ulysses wins"}.get(
        row.claim, "Neither layout wins clearly"
    )
    guess = "" if pd.isna(row.predicted_share) else f" Predicted was {ratio(row.predicted_share)}."
    md(f"""
**{row.machine}, {row.height}p: {verdict}.** With all weights on the GPUs a step takes {seconds(row.cfg_s, 3)}
with half of the GPUs for each branch, and {seconds(row.ulysses_s, 3)} with Ulysses over all {row.gpus}:
{ratio(row.difference)}, {row.claim}.{guess}
""")  # fmt: skip
both["predicted"] = both.predicted_share.map(ratio).where(
    both.predicted_share.notna(), "not predicted"
)
if len(both):
    wins = [
        f"{engine} {' to '.join(dict.fromkeys(map(ratio, (here.min(), here.max()))))}"
        for engine, here in both.groupby("engine", sort=False).difference
    ]
    table(both.sort_values(["machine", "height", "ulysses_s"]),
          {"engine": "engine", "machine": "machine", "height": "video height", "ulysses_s": "step, Ulysses",
           "cfg_s": "step, CFG parallel", "difference": "CFG over Ulysses", "claim": "that is",
           "alike": "same iterations", "predicted": "predicted", "overhead_ulysses": "over resident, Ulysses", "overhead_cfg": "over resident, CFG parallel"},
          kinds={"predicted": "predicted"}, kind="derived",
          caption=f"A step with CFG parallelism against one with Ulysses alone: {'; '.join(wins)}",
          note="Steady steps. Each engine's overhead is over resident with the same layout and shape. Where iterations "
               "are not the same, one of both runs had a warm-up or a profiled iteration and the other had none.")  # fmt: skip
together = compare.layout_cells(f)
if len(together):
    alone = cost.query("source == 'bench' and gpus == 1 and engine == 'resident' and not again")
    work = ["gpu_model", "tokens", "blocks", "branches"]
    alone = alone.sort_values("started").groupby(work).step_s.last()
    half = alone.reindex(pd.MultiIndex.from_frame(together[work])).to_numpy() / 2
    together["half_s"] = pd.Series(half, together.index).where(together.gpus == 2)
    spans = [f"{machine} {' to '.join(dict.fromkeys(map(ratio, (here.min(), here.max()))))}"
             for machine, here in together[together.engine == "resident"].groupby("machine").difference]  # fmt: skip
    table(together,
          {"what": "engine", "machine": "machine", "tokens": "tokens", "ulysses_s": "step, Ulysses",
           "step_s": "step, CFG parallel", "difference": "CFG over Ulysses", "claim": "that is",
           "half_s": "half of resident's step on one GPU", "overhead": "over resident, CFG parallel", "n": "n"},
          kinds={"half_s": "derived"},
          caption=f"Both layouts in one campaign; a step of resident with CFG parallelism over Ulysses: {'; '.join(spans)}",
          note=f"{spelled(together.blocks)} blocks, a CFG step. Each of two GPUs runs one branch. With all weights there, that takes about "
               "half of the time that one GPU needs for both (on other boards of that model); with offload, no less than its "
               "copies take. n: steps of the layout that ran fewer.")  # fmt: skip
if not (both.gpus == 4).any():
    todo = [f"720p-4gpu-{engine}{layout}-8steps" for engine in ("resident", "layerwise", "stream")
            for layout in ("", "-cfg")]  # fmt: skip
    todo = pd.DataFrame(
        [{"what": path, "command": to_measure(*todo)} for path in ("PCIe path", "NVLink")]
    )
    todo["command"] = ("NCCL_P2P_DISABLE=1 " + todo.command).where(
        todo.what == "PCIe path", todo.command
    )
    table(todo, {"what": "where", "command": "command"}, kind=None,
          caption="Not measured: four GPUs with both layouts, and what would measure them")  # fmt: skip

# %% [markdown]
# ## What should I run?
#
# Of all engines, layouts, transfers and memory budgets that fit: what makes a whole video soonest, and
# the runner-up. A time is as measured on that machine where it was, else as predicted. What is within
# 1 % of the fastest is as fast, a tie: then what was measured goes first, and then what needs the least
# memory.

# %%
advice = []
real = f.full_scale().query("program == ''")
for row in real.drop_duplicates(["gpu_model", "gpus", "interconnect"]).itertuples():
    wire = "nvlink" if row.interconnect == "NVLink" else "host-memory"
    try:
        ways = recommend.recommend(f, row.gpu_model, int(row.gpus), wire)
    except predictions.PredictionError:  # no `stream` on one of these GPUs yet
        continue
    ways["what"] = ways.engine + ways.transfer.map({"bf16": "", "packed": ", packed"})
    ways["what"] += ", " + ways.layout if row.gpus > 1 else ""
    seen = ways.kind == "measured"
    ways["page"] = [
        page(file) if ran else None for file, ran in zip(ways.rests_on, seen, strict=True)
    ]
    one, two = (ways[ways.place == place].set_index("height") for place in (1, 2))
    advice.append(one.join(two.add_prefix("next_")).reset_index().assign(machine=row.machine))
if advice:
    advice = pd.concat(advice).sort_values(["machine", "height"])
    basis = advice.rests_on[advice.kind == "predicted"]
    over = advice.next_total_s / advice.total_s - 1
    advice["over"] = over.map(ratio).mask(over <= recommend.ALIKE, "a tie")
    table(advice,
          {"machine": "machine", "height": "video height", "what": "run", "needs_bytes": "budget",
           "total_s": "a video", "kind": "that is", "next_what": "runner-up", "next_needs_bytes": "its budget",
           "next_total_s": "its video", "next_kind": "which is", "over": "over the first"},
          links={"what": "page", "next_what": "next_page"}, kind=None,
          kinds={f"{which}{each}": f"{which}kind" for which in ("", "next_") for each in ("needs_bytes", "total_s")},
          caption=f"What to run on {advice.machine.nunique()} machines: {spelled(advice.engine)}",
          note=f"81 frames, 27 steps, without decoding. Predictions rest on {spelled(basis)}. "
               "For other numbers of GPUs: wanreport plan --gpus N.")  # fmt: skip

# %% [markdown]
# ## More prefetch
#
# Comparison B of the baseline (§9.3): more layers ahead against the default.

# %%
deep = every_pair.query("changed == 'prefetch' and source == 'job'").sort_values("machine")
base, more = (f.runs.loc[deep[run]].reset_index(drop=True) for run in ("run_a", "run_b"))
deep = pd.DataFrame({
    **compare.told(more, base), "deep": more.prefetch, "base": base.prefetch, "deep_s": more.step_s,
    "base_s": base.step_s, "allocated_difference_bytes": more.allocated_bytes - base.allocated_bytes,
})  # fmt: skip
worth = spelled(f"{claim} on {', '.join(here.machine)}" for claim, here in deep.groupby("claim"))
md(f"""
It expected {facts.text("s9.2.prefetch.gain_low")} to {facts.text("s9.2.prefetch.gain_high")} less a step, and
{facts.text("s9.3.b.vram").replace("+", "")} more memory.
""")
table(deep,
      {"machine": "machine", "work": "work", "base_s": "default", "deep_s": "deeper",
       "difference": "difference", "claim": "that is", "same_boards": "same boards",
       "allocated_difference_bytes": "more memory"},
      caption=f"The deeper prefetch against the default: {worth}", note="Steady steps.")  # fmt: skip

# %%
block = jobs.block_bytes[jobs.height == 480].max()
ahead = {"default": 1, "three": 3, "five": 5, "ratio": int(facts.number("s6.2.ratio.layers"))}
seen = deep.set_index("deep").allocated_difference_bytes.groupby("deep").max() if len(deep) else {}
rows = [
    {"size": facts.text(f"s6.2.{key}.size"), "layers": facts.text(f"s6.2.{key}.layers"),
     "vram": facts.text(f"s6.2.{key}.vram"), "effect": facts.text(f"s6.2.{key}.effect"),
     "rule": gigabytes(block * layerwise_held(pairs.BLOCKS, n, switch=True), 3),
     "ours": "the default" if n == 1 else gigabytes(seen[n], 3) + " more" if n in seen else "not measured"}
    for key, n in ahead.items()
]  # fmt: skip
table(pd.DataFrame(rows),
      {"size": "prefetch size", "layers": "layers ahead", "vram": "memory",
       "effect": "expected effect", "rule": "held on the GPU", "ours": "measured"},
      kinds={**dict.fromkeys(["size", "layers", "vram", "effect"], "quoted"), "rule": "derived"}, kind=None, caption="Prefetch sizes of the baseline (§6.2)",
      note="Held: layers on the GPU at once around the switch, as SGLang frees layers late. A size that was not "
           "measured needs a params file with it, and about as long as the job of size 3: "
           f"{jobs.wall_s[jobs.prefetch == 3].max() / 60:.0f} minutes.")  # fmt: skip

# %% [markdown]
# ## Engines beside their peers
#
# Our engines, SGLang's current layerwise offload and diffusers' group offload on the same blocks and
# shapes, in one campaign on the same boards. Few tokens compute too little to hide the copies; there the
# link is the limit.

# %%
from matplotlib.lines import Line2D

NOISE = 1.0  # per cent over resident, below which streaming counts as free
SYMLOG = {"linthresh": NOISE, "linscale": 0.6}
PER_CENT = {-1: f"{MINUS}1", 0: "0", 1: "+1", 10: "+10", 100: "+100"}
GIVEN = "stream, settings given"  # and not planned


def by_tokens(cells, others):
    """Draw the step over resident by tokens: a panel for each machine and number of branches.

    Of each cell one campaign has lines; `others` are faint marks.
    """
    engines = pd.concat([cells, others]).groupby("who").engine.first()
    markers = engines.map(MARKERS).fillna("o").to_dict()
    look = {"x": "tokens", "y": "over resident, %", "hue": "who", "style": "who", "legend": False,
            "palette": engines.map(colour).to_dict()}  # fmt: skip
    dashes = {name: (4, 3) if name == GIVEN else "" for name in engines.index}
    groups = list(cells.groupby(["machine", "branches"]))
    down = -(-len(groups) // 2)
    figure, panels = plt.subplots(down, 2, sharex=True, sharey=True, squeeze=False,
                                  figsize=(WIDTH, 0.9 + 2.3 * down))  # fmt: skip
    for axes, ((machine, branches), some) in zip(panels.flat, groups, strict=False):
        rest = others[(others.machine == machine) & (others.branches == branches)]
        sns.scatterplot(rest, **look, markers=markers, s=20, alpha=0.4, ax=axes)
        sns.lineplot(some, **look, dashes=dashes, linewidth=1.2, ax=axes)
        for again, marks in some.groupby("bracketed"):  # hollow where resident did not run again
            sns.lineplot(marks, **look, dashes=False, linestyle="", markers=markers, markeredgecolor=None,
                         markeredgewidth=1, markerfacecolor=None if again else "none", ax=axes)  # fmt: skip
        axes.axhspan(-NOISE, NOISE, facecolor=INK, alpha=0.15, linewidth=0)
        axes.set_title(f"{machine}, {'a CFG step' if branches == 2 else 'one branch'}")
        axes.label_outer()
    axes, ticks = panels[0, 0], []  # which the others share their axes with
    for value in sorted(set(cells.tokens)):
        ticks += [value] if not ticks or value > 1.4 * ticks[-1] else []
    axes.set_yscale("symlog", **SYMLOG)
    axes.set(xscale="log", ylim=(min(150 * cells.overhead.min(), -1.5), max(150 * cells.overhead.max(), 20)))  # fmt: skip
    axes.set_xticks(ticks, [f"{value / 1e3:.2g}k" for value in ticks])
    axes.set_yticks([*PER_CENT], PER_CENT.values())
    for number, axes in enumerate(panels.flat):
        axes.minorticks_off()
        axes.set_visible(number < len(groups))
        axes.tick_params(labelbottom=number >= len(groups) - 2)
    keys = [Line2D([], [], label=name, color=colour(engine), marker=markers[name], linewidth=1.2,
                   linestyle=figures.DASHES if name == GIVEN else "-") for name, engine in engines.items()]  # fmt: skip
    figure.legend(handles=keys, loc="outside upper left", ncols=4)
    return figure


# %%
LITTLE = 0.02
measured = cost[(cost.source == "bench") & ~cost.again & (cost.engine != "resident")]
off = measured.latents_off_share  # of what is exact not noted, but known
measured = measured.assign(off_share=off.mask(measured.same_bits.eq(True), 0.0))
# Many settings of one engine beside each other are a section of their own.
exact = measured[(measured.engine == "stream") & (measured.transfer == "bf16")]
many = exact.groupby("group").name.transform("nunique").reindex(measured.index) > 4
plain = (measured.transfer == "bf16") & ~measured.cfg_parallel & ~many
cells = measured[plain].astype({"tokens": int})
cells["over resident, %"] = 100 * cells.overhead
cells["who"] = cells["name"].mask((cells.engine == "stream") & (cells.label != "planned"), GIVEN)
drawn = cells.index.isin(compare.counting(f).index)
best = cells[drawn]
lengths = best.groupby(["machine", "branches"]).tokens.transform("nunique")
curves = best[lengths > 1]
rivals = compare.rivals(f)
if curves.overhead.notna().any():
    alone = best[(best.gpus == 1) & (best.engine == "stream")]
    alone = alone.groupby("tokens").overhead.max()[::-1].cummax()
    free = alone.index[alone < LITTLE].min()
    show(by_tokens(curves, cells[~drawn]),
         caption=(f"Beyond noise, stream is {compare.beaten(rivals)}. " if len(rivals) else "")
                 + f"On one GPU its median costs at most {share(LITTLE)} from {free:,} tokens on. " * bool(free == free)
                 + "Hollow: resident did not run again; faint: other campaigns.")  # fmt: skip
if len(rivals):
    others = [*dict.fromkeys(rivals.name)]
    beside = rivals.pivot(index="ours", columns="name", values="overhead").add_suffix("_overhead")
    beside = f.runs.loc[beside.index].join(beside).sort_values(CELL)
    beside["settings"] = beside.name.str.removeprefix("stream, ")
    beside["n"] = rivals.groupby("ours").step_n.min().clip(upper=beside.step_n)
    table(beside,
          {"machine": "machine", "work": "work", "settings": "stream's settings", "overhead": "stream",
           **{f"{name}_overhead": name for name in others}, "resident_s": "resident", "n": "n"},
          caption="A step over resident's, each row in one campaign on the same boards",
          note="n: steps of the engine that ran the fewest. A dash: not in that campaign.")  # fmt: skip

# %%
theirs = best[(best.engine == "sglang") & (best.gpus == 2) & best.limit_s.notna()].copy()
theirs["link_bound"] = theirs.limit_s > theirs.resident_s  # copying takes longer than computing
paths = theirs.pivot_table(
    index=["gpu_model", "tokens", "branches"],
    columns="interconnect",
    values=["overhead", "step_s", "link_bound"],
    aggfunc="first",
).dropna()
if len(paths) and {"NVLink", "PCIe path"} <= {*theirs.interconnect}:
    bound = paths.link_bound.astype(bool).any(axis=1)
    costs = "; ".join(f"{ratio(row['NVLink'])} over NVLink and {ratio(row['PCIe path'])} on the PCIe path at {tokens:,} tokens"
                      for (_, tokens, _), row in paths.overhead[~bound].iterrows())  # fmt: skip
    few = "; ".join(f"{seconds(row['NVLink'], 3)} a step and {seconds(row['PCIe path'], 3)} at {tokens:,} tokens"
                    for (_, tokens, _), row in paths.step_s[bound].iterrows())  # fmt: skip
    md(f"""
Why does NVLink win (§8)? Because collectives then leave the weights' link alone. Where a step computes for longer
than its copies take on both paths, SGLang's offload costs {costs or "what no pair tells yet"}.{f" With fewer tokens copying is the limit on one path or both: {few}." * bool(few)}
""")

# %%
measured["moved"] = measured.drift.map(ratio).where(measured.drift.notna(), "did not run again")
for machine, here in measured.groupby("machine"):
    off = {"off_share": "latents off by"} if here.latents_off_share.notna().any() else {}
    held = {"allocated_bytes": "peak allocated"} if here.allocated_bytes.notna().any() else {}
    table(here.sort_values(["branches", "tokens", "campaign", "step_s"]),
          {"name": "engine", "work": "work", "step_s": "step", "overhead": "over resident",
           "over_limit": "over the limit", "claim": "that is", "moved": "resident moved",
           **held, "same_bits": "same bits", **off}, interval=["step_s"],
          caption=f"Every row measured on {machine}", fold=f"Every row measured on {machine}",
          note="Step: median [95 % interval]. The limit is the larger of resident's step (of packed blocks, with what unpacking takes "
               "by itself, where that is known) and of the bytes over the link's measured bandwidth. Resident moved: its closing run over the first. "
               "Several campaigns may have measured the same engine at the same work.")  # fmt: skip

# %%
plans = cost[cost.planned_step_s.notna()].assign(error=cost.planned_step_s / cost.step_s - 1)
plans["of"] = plans.source.map({"job": "the full model", "bench": "other runs of such cells"})
plans.loc[plans.index.isin(curves.index), "of"] = "the runs drawn above"
errors = plans.assign(size=plans.error.abs()).groupby("of", as_index=False).agg(
    n=("size", "size"), median_share=("size", "median"), worst_share=("size", "max"),
    shorter=("error", lambda error: f"{(error < 0).sum()} of {len(error)}"))  # fmt: skip
table(errors,
      {"of": "plans for", "n": "n", "median_share": "median error", "worst_share": "worst",
       "shorter": "planned too short"},
      caption="By how much plans miss the measured step: "
              f"{spelled(f'{share(row.median_share)}, at most {share(row.worst_share)}, for {row.of}' for row in errors.itertuples())}",
      kind="derived",
      note="Predicted step over the measured one, less 1; sizes without sign. All runs of jobs count.")  # fmt: skip

# %% [markdown] tags=["with-output"]
# ## What does each setting of stream bring?
#
# A plan says how many slots the blocks take in turn, which of them stay on the GPU, and how many bytes
# may go between all-to-alls. Below, one setting at a time differs from a base, which has each setting as
# most of these runs have it. Without windows, copies meet all-to-alls. Sharded, each GPU copies its part
# of a block, and the GPUs gather it over the link of their all-to-alls. With each branch of guidance by
# itself, every block that does not stay comes twice a step.

# %%
from statistics import mode

CHANGED = {"windows": "no windows", "shard": "sharded", "branches_per_visit": "each branch by itself",
           "slots": "{} slots", "residents": "{} blocks stay", "spread": "the first ones",
           "copy_streams": "{} copy streams", "priority": "copies of higher priority"}  # fmt: skip


def changed(settings):
    """Say for each run of a group in which settings it is not as most of them are."""
    usual = {key: mode(repr(each[key]) for each in settings) for key in CHANGED}
    return [", ".join(said.format(each[key]) for key, said in CHANGED.items() if repr(each[key]) != usual[key])
            for each in settings]  # fmt: skip


def by_setting(tried):
    """Draw what each change does to a step, with its interval: a row a change, a mark a length."""
    names, tokens = [*dict.fromkeys(tried.changed)], sorted(set(tried.tokens))
    shades = dict(zip(tokens, sns.color_palette("crest", len(tokens)), strict=True))
    tried = tried.assign(
        row=tried.changed.map(names.index) + tried.tokens.map(tokens.index) / 4 - 0.25
    )
    figure, axes = plt.subplots(figsize=(NARROW, 0.8 + 0.36 * len(names)))
    axes.axvspan(-NOISE, NOISE, facecolor=INK, alpha=0.15, linewidth=0)
    axes.hlines(
        tried.row, 100 * tried.difference_low, 100 * tried.difference_high, tried.tokens.map(shades)
    )
    sns.scatterplot(tried, x=100 * tried.difference, y="row", hue="tokens", palette=shades, ax=axes)
    figures.rows(axes, names)
    axes.set_xscale("symlog", **SYMLOG)
    axes.set_xticks([*PER_CENT], PER_CENT.values())
    axes.set(
        xlabel="step over the base's, %", xlim=(-5, max(100, 100 * tried.difference_high.max()))
    )
    return figure


# %%
if many.any():
    tried = measured[many].astype({"tokens": int})
    tried["changed"] = tried.groupby("group").settings.transform(changed)
    base = tried[tried.changed == ""].drop_duplicates("group").set_index("group")
    tried = tried[tried.changed != ""]
    tried = tried.assign(**compare.told(tried, base.loc[tried.group].set_axis(tried.index)))
    tried["most"] = tried.groupby("changed").difference.transform("max")
    tried = tried.sort_values(["most", "changed", "tokens"], ascending=[False, True, True])
    costly = tried[tried.claim == "slower"].groupby("changed", sort=False).difference.max()
    show(by_setting(tried),
         caption=f"Beyond noise on {spelled(tried.machine)}: "
                 f"{spelled(f'{name} (up to {ratio(most)})' for name, most in costly.items())}. Of {len(tried)} changes "
                 f"{(tried.claim == 'within noise').sum()} are within noise. Whiskers: what both 95 % intervals allow.")  # fmt: skip
    table(tried, {"changed": "changed", "machine": "machine", "work": "work", "step_s": "step",
                  "difference": "over the base's", "claim": "that is", "h2d_step_bytes": "bytes a step", "same_bits": "same bits"},
          interval=["step_s"], caption="One setting at a time", fold="One setting at a time",
          note=f"All settings of a length took turns in one process. The base: {spelled(base['name'])}.")  # fmt: skip

# %% [markdown]
# ## Memory
#
# SGLang's peak GPU memory is what its allocator *reserved*, in GiB, so ours stands beside it in the
# same way.

# %%
memory = compare.plain_jobs(f.full_scale(), every=True).query("latest").sort_values("started")
memory = (
    memory.groupby(["machine", "height", "name"])
    .tail(1)
    .sort_values(["machine", "height", "reserved_bytes"])
)
memory["reserved_gib"] = memory.reserved_bytes / GIB
memory["free_gib"] = (memory.gpu_memory_bytes - memory.reserved_bytes) / GIB
peaks = {f"{key}_gib": [facts.number(f"s3.2.{name}.{side}") for side in ("new", "old")]
         for key, name in {"reserved": "peak", "free": "free"}.items()}  # fmt: skip
theirs = pd.DataFrame({**peaks, "name": ["baseline, new", "baseline, old"], "engine": "",
                       "machine": "the baseline's", "work": "the baseline's"})  # fmt: skip
memory = pd.concat(
    [theirs.assign(kind="quoted"), memory.assign(kind="measured")], ignore_index=True
)
memory["pinned_bytes"] = memory.pinned_bytes.where(~(memory.pinned_bytes < 1e6), 0)
stream_bytes, resident_bytes = f.runs.loc[[windows.run, windows.reference]].reserved_bytes
kinds = dict.fromkeys(["reserved_gib", "free_gib", "allocated_bytes", "pinned_bytes"], "kind")
table(memory,
      {"name": "engine", "machine": "machine", "work": "work",
       "reserved_gib": "reserved at the peak", "free_gib": "left of the GPU",
       "allocated_bytes": "allocated", "pinned_bytes": "pinned on the host"}, kinds=kinds,
      caption=f"At 480p on the PCIe path stream reserves {gibibytes(stream_bytes, 3)}, resident {gibibytes(resident_bytes, 3)}",
      note="Peaks over ranks and iterations; pinned memory is shared by all ranks of a host.")  # fmt: skip

# %% [markdown]
# ## Traces and bandwidth
#
# The baseline's trace summary (§3.4) and its bandwidth tables (§4) come from traces that end before
# the GPU's own events. Below are its rows beside whole traces of ours: rank 0 of two GPUs, two steps
# around the switch, read by the same code as `wanreport trace` reads any file.

# %%
from wanreport import traces
from wanreport.traces import copies

two = jobs[
    (jobs.traces > 0) & (jobs.gpus == 2) & jobs.engine.isin(["layerwise", "stream"])
    | jobs.traced.notna()
]
files = {run: project_root() / file for run, file in two.file.items()}
files = {run: sorted((at.parent / "traces" / at.stem).glob("rank*")) for run, at in files.items()}
files = {run: found[0] for run, found in files.items() if found}
names = (two.engine + ", " + two.interconnect).where(two.traced.isna(), two.job)
read = {names[run]: traces.read(file) for run, file in files.items()}


def beside(rows, ours, *ends):
    """Put rows of the baseline (title, column of ours, scale, fact) beside what our traces hold."""
    return pd.DataFrame([
        {"what": title, **{end: facts.text(fact.format(end)) if fact.format(end) in facts else "none"
                           for end in ends},
         **{name: written(scale * ours.at[name, column]) for name in ours.index}}
        for title, column, scale, fact in rows])  # fmt: skip


def written(number):
    return f"{number:,.0f}" if float(number).is_integer() else significant(number, 3)


# %%
if read:
    found = copies.summary(read.values())
    found = found[found.step.isna()].set_axis(list(read))
    rows = [("file, MB", "size_bytes", 1e-6, "s3.4.size.{}"), ("copies", "copies", 1, "s3.4.copies.{}"),
            ("blocking", "blocking", 1, "s3.4.blocking.{}"), ("asynchronous", "async", 1, "s3.4.async.{}"),
            ("between host and GPU", "host_device", 1, "s3.4.pcie.{}"),
            ("copy calls over 10 µs", "calls_over_10us", 1, "s3.4.over_short.{}"),
            ("copy calls over 100 µs", "calls_over_100us", 1, "s3.4.over_long.{}"),
            ("collectives", "collectives", 1, "s3.4.nccl.{}")]  # fmt: skip
    table(beside(rows, found, "new", "old"),
          {"what": "", "new": "baseline, new", "old": "baseline, old", **{name: name for name in read}},
          kinds={"new": "quoted", "old": "quoted"},
          caption=f"{share(float((found['async'] / found.copies).min()))} or more of our copies are asynchronous (§3.4)",
          note="Ours: two profiled steps at 480p. The baseline counted whole files of another length.")  # fmt: skip

# %%
if read:
    link = {names[run]: two.link_gb_s[run] for run in files}
    down = copies.bandwidth(read.values(), facts.number("s4.3.peak.bandwidth"))
    down = down[down.direction == "HtoD"].groupby("file", sort=False).tail(1)
    down = down.set_axis(list(read)).assign(utilised=lambda each: 100 * each.of_peak)
    rows = [("moved, GB", "bytes", 1e-9, "s4.{}.data"), ("copying, s", "ns", 1e-9, "s4.{}.time"),
            ("average, GB/s", "weighted_gb_s", 1, "s4.{}.mean"), ("of the peak, %", "utilised", 1, "s4.{}.utilisation"),
            ("median, GB/s", "median_gb_s", 1, "s4.{}.median"), ("P10, GB/s", "p10_gb_s", 1, "s4.{}.p10"),
            ("P90, GB/s", "p90_gb_s", 1, "s4.{}.p90"),
            ("median by bytes, GB/s", "median_by_bytes_gb_s", 1, "none"),
            ("time at 0 to 5 GB/s, %", "share_0_5", 100, "s4.{}.band.low.share"),
            ("at 5 to 20 GB/s, %", "share_5_20", 100, "s4.{}.band.middle.share"),
            ("at 20 GB/s and more, %", "share_20_up", 100, "s4.{}.band.high.share")]  # fmt: skip
    fast = down.median_by_bytes_gb_s
    table(beside(rows, down, "1", "2"),
          {"what": "", "1": "baseline, old", "2": "baseline, new", **{name: name for name in read}},
          kinds={"1": "quoted", "2": "quoted"},
          caption=f"Half of our bytes reach the GPU at {significant(fast.min(), 3)} GB/s or more (§4.1, §4.2)",
          note="Ours: all copies to the device, timed on the GPU. The baseline's: blocking ones, timed on "
               "the host. By copy, the many small ones count as much as a layer.")  # fmt: skip

# %%
if read:
    budget = pd.concat([copies.budget([trace], facts.number("s4.3.peak.bandwidth"), link[name]).assign(run=name)
                      for name, trace in read.items()])  # fmt: skip
    budget["share"], budget["copying_s"] = budget.share.astype(float), budget.ns / 1e9
    table(budget, {"run": "run", "scenario": "at the rate", "rate_gb_s": "rate", "step_bytes": "a step",
                 "copying_s": "copying a step", "share": "of its compute"},
          caption=f"Copying takes {share(budget.share.min())} to {share(budget.share.max())} of what a step "
                  f"computes; the baseline took {facts.text('s4.3.peak.percent')} to "
                  f"{facts.text('s4.3.observed.percent')} (§4.3)",
          note=f"Peak: the baseline's {facts.text('s4.3.peak.bandwidth')}. Measured: pinned copies alone, before "
               f"the run. Observed: in the trace. The baseline counts {facts.text('s4.3.peak.bytes')} a step.")  # fmt: skip
    met = pd.concat(
        [copies.summary([trace], link[name]).assign(run=name) for name, trace in read.items()]
    )
    met = met[met.step.isna()]
    met["noted_share"] = met.run.map(
        dict(zip(read, shares.hidden.reindex(list(files)), strict=True))
    )
    apart = 100 * (met.hidden_share - met.noted_share).abs().max()
    table(met, {"run": "run", "hidden_share": "beside kernels", "noted_share": "the same by device events",
                "in_collectives_share": "beside collectives", "meeting_gb_s": "rate of those that meet one"},
          kind="derived", caption="What part of the copies runs beside kernels, and beside NCCL's (§9.3 C)",
          note=f"Shares of copying time. A trace and the run's own device events differ by up to {apart:.1f} points: "
               "events count packing for an all-to-all as part of it, a trace as a kernel like any other.")  # fmt: skip

# %% [markdown]
# The link itself was measured before each run, all GPUs copying at once.

# %%
links = jobs.groupby("machine").link_gb_s.agg(["min", "max", "size"]).reset_index()
links[["least_gb_s", "most_gb_s"]] = links[["min", "max"]]
links["baseline_gb_s"] = facts.number("s4.3.peak.bandwidth")
table(links,
      {"machine": "machine", "least_gb_s": "slowest run", "most_gb_s": "fastest run", "size": "runs",
       "baseline_gb_s": "baseline's peak"}, kinds={"baseline_gb_s": "quoted"},
      caption=f"Pinned copies reach up to {significant(links.most_gb_s.max(), 3)} of the "
              f"{facts.text('s4.3.peak.bandwidth')} that the baseline takes as the peak",
      note="Slowest rank, all ranks copying, median of several copies.")  # fmt: skip

# %% [markdown]
# ## Open questions
#
# The baseline ends with seven (§10). Each has its answer from pairs of runs, or the command that would
# give one.

# %%
ASKED = {
    1: "1. Is the new offload faster on two GPUs?",
    2: f"2. PCIe against NVLink at {facts.text('s10.sequence')}",
    3: "3. Does sharding help, so that each GPU brings only a part?",
    4: "4. Would INT8 or FP8 transfers halve the traffic?",
    5: "5. Does a copy stream of higher priority help?",
    6: "6. Do several copy streams help?",
    7: "7. Does prefetch that follows the schedule help?",
}
known = questions(every_pair)
known["what"] = known.number.map(ASKED)
known["pair"] = known.name_a + " over " + known.name_b
known["where"] = known.machine.where(known.number != 2, "PCIe path, then NVLink")
only = known.together_with.map(
    lambda all_: all(each.startswith(("boards", "clock")) for each in all_)
)
fewer_bits = (known.number != 4) | ~known.change.str.contains("packed")
known["exact"] = (only & (known.number != 7) & fewer_bits & ((known.number != 2) | (known.tokens == 10_000))
                  ).where(known.number != 1, known.source == "job")  # fmt: skip
known = known.sort_values(["number", "exact"], ascending=[True, False], kind="stable")
near = ~known.exact & known.number.isin(known.number[known.exact])  # a pair tells exactly
asked = {"what": "question", "pair": "pair", "where": "machine", "work": "work", "difference": "difference",
         "claim": "that is", "exact": "as asked"}  # fmt: skip
table(known[~near], asked, kind="derived",
      caption=f"Pairs of runs tell of {known.number.nunique()} of {len(ASKED)} questions, "
              f"{known.number[known.exact].nunique()} of them exactly as asked",
      note="A steady step over another, less 1; in question 2 the overhead over PCIe less that over NVLink, in question 7 "
           "the first without windows. Windows "
           "follow the parts of a block, not the schedule, so they are only near question 7. Packed weights are "
           "exact; fp8's are rounded, and random weights say nothing about the quality of its videos.")  # fmt: skip
if near.any():
    table(known[near], asked, kind="derived", fold="Pairs that are near a question, and not as asked",
          caption="Pairs of other lengths or work, or in which more than that differs")  # fmt: skip
shared = measured[
    measured.settings.map(lambda chosen: chosen.get("shard", False))
    & measured.planned_step_s.notna()
]
if len(shared):
    md(f"Pairs tell of question 3 on {spelled(known.machine[known.number == 3])}. Where GPUs gather over another link than the "
       f"weights', plans chose to shard: on {' and '.join(dict.fromkeys(shared.machine.sort_values()))}, at "
       f"{shared.tokens.min():,.0f} to {shared.tokens.max():,.0f} tokens.")  # fmt: skip

# %% [markdown]
# For question 4 `stream` has two ways to send fewer bytes. `packed` is exact: sign and mantissa of a
# weight travel as one byte and its exponent as 4 bits; the few that do not fit are listed apart. `fp8`
# rounds each weight to 8 bits, with a scale for each output channel, so the video is another one. INT8
# would send as many bytes as fp8, so it was not built.
#
# How far real checkpoints shrink is known from others: by their own figures, the
# Huffman codes of [DFloat11](https://arxiv.org/abs/2504.11651) take 0.68 to 0.70 of the bytes. Our random
# weights say nothing about that.

# %%
sent = measured[(measured.engine == "stream") & ~measured.cfg_parallel].sort_values("step_s")
sent["planned"] = sent.label.str.startswith("planned")
wide = sent.pivot_table(index=["group", "planned"], columns="transfer", aggfunc="first", sort=False,
                        values=["step_s", "overhead", "over_limit", "off_share"])  # fmt: skip
kinds = pd.MultiIndex.from_product(
    [["step_s", "overhead", "over_limit", "off_share"], ["bf16", "packed", "fp8"]]
)
wide = wide.reindex(columns=kinds).dropna(subset=[("step_s", "bf16"), ("step_s", "packed")])
if len(wide):
    wide.columns = ["_".join(each) for each in wide]
    about = ["machine", "branches", "tokens", "blocks", "work", "resident_s", "started"]
    by = wide.join(sent.groupby(["group", "planned"])[about].first()).reset_index("planned")
    by["several"] = by[["step_s_packed", "step_s_fp8"]].notna().sum(axis=1)
    by = by.sort_values(["several", "started"]).drop_duplicates([*CELL, "blocks"], keep="last")
    rows = measured[measured.name.str.match("SGLang|diffusers") & measured.group.isin(by.index)]
    against = rows.pivot_table(index="group", columns="name", values="overhead", aggfunc="min")
    by = by.join(against.add_suffix("_overhead")).sort_values(["machine", "tokens"])
    by["ratio_x"] = by.step_s_packed / by.step_s_bf16
    by["time"] = by.started.str[:16].str.replace("T", " ")
    by["n"] = pd.concat([sent, rows]).groupby("group").step_n.min()
    least = by.loc[by.ratio_x.idxmin()]
    there = f"; fp8, which is not the same, takes {least.step_s_fp8 / least.step_s_bf16:.2f} there"
    the_same = (
        sent[sent.group.isin(by.index) & (sent.transfer == "packed")].same_bits.eq(True).all()
    )
    table(by.reset_index(),
          {"machine": "machine", "tokens": "tokens", "overhead_bf16": "bf16", "overhead_packed": "packed, exact",
           "overhead_fp8": "fp8, not exact", "off_share_fp8": "fp8's latents off by",
           **{f"{name}_overhead": name for name in against}, "resident_s": "resident",
           "ratio_x": "packed over bf16", "over_limit_packed": "packed over its limit", "n": "n", "time": "measured"},
          caption=f"Packed blocks{', bit by bit the same,' * bool(the_same)} take {least.ratio_x:.2f} of bf16's step at {least.tokens:,} tokens on "
                  f"{least.machine}, and {by.ratio_x.max():.2f} at most{there * bool(least.step_s_fp8 > 0)}",
          note=f"{spelled(by.work.str.partition(', ')[2])}, over resident's, each row in one campaign on the same boards. Off by: "
               "relative error of the latents after a short schedule. Limit: resident's step and what unpacking takes by itself, or "
               "moving the bytes. With plans (two GPUs) each transfer has windows of its own, or none. n: steps of what ran the "
               "fewest. A dash: not in that campaign.")  # fmt: skip

# %%
asks = {by: check.why for check in load_checks()["checks"] for by in check.by or []}
open_ = pd.DataFrame([{"what": what, "command": asks[f"question-{n}"] or "no engine does this yet"}
                      for n, what in ASKED.items() if n not in set(known.number[known.exact])])  # fmt: skip
table(open_, {"what": "question", "command": "what would answer it as asked"},
      caption=f"Not measured as asked: {len(open_)} of {len(ASKED)}", kind=None)  # fmt: skip

# %% [markdown]
# ## The checks
#
# What the baseline wanted checked in new results (§9.2, §6.1), and three checks of the engines
# themselves. Where the setup differs from what was asked, the answer says so. A rehearsal answers
# nothing about time, memory or overlap.

# %%
CHECKS = {
    "shift": "Is the right flow shift loaded?",
    "switch": "Does the schedule switch where it should?",
    "pure": "Does the job run out of memory without offload?",
    "prefetch": "Does a deeper prefetch make steps shorter?",
    "overlap": "Do copies to the device overlap compute?",
    "contention": "Do copies to the device and collectives contend for PCIe?",
    "bits": "Do all engines end in the same bits, at each number of GPUs?",
    "repeat": "Does each job end in the same bits in each iteration?",
    "formula": "Do counted copies, bytes, allocations and waits equal the formulas?",
    **{f"spike-{old}": f"Is the old offload's spike ({old}) at the switch?" for old in OLD},
    **{f"slower-{old}": f"Is layerwise still slower than {old}?" for old in OLD},
    **{
        f"scaling-{old}": f"Does layerwise lose more to {old} on more GPUs?"
        for old in (*OLD, "resident")
    },
}
asked = checks.checks(f, facts, lanes)
every = f.runs[f.runs.source == "job"]
own = every[(every.status == "ok") & every.latents.notna()]
own = own[own.groupby("group").engine.transform("nunique") > 1]
# On a GPU fsdp's own buffers may get other kernels, so that it decides nothing there.
same = own[own.rehearsal | (own.engine != "fsdp")].groupby("group").latents.nunique() == 1
excused = own.groupby("group").latents.nunique()[same.index].gt(1) & same
for name, right, unit, but in [
    ("bits", same, "group", ", but for fsdp" * bool(excused.any())),
    ("repeat", every.repeats.dropna().astype(bool), "run", ""),
    ("formula", every.formula_ok.dropna().astype(bool), "run", ""),
]:
    row = {"check": name, **checks.NOTHING, "expected": ""}
    if len(right):
        row["status"] = "pass" if right.all() else "fail"
        row["measured"] = f"{right.sum()} of {counted(len(right), unit)}{but}"
    asked = pd.concat([asked, pd.DataFrame([row])], ignore_index=True)
asked["question"] = asked.check.map(CHECKS)
asked["expects"] = [(facts.text(name) or says(name)) if name else "all of them" for name in asked.expected]  # fmt: skip
for name, nothing in {"machine": "any", "setting": "nothing", "measured": "nothing"}.items():
    asked[name] = asked[name].replace("", nothing)
table(asked,
      {"question": "check", "status": "status", "machine": "machine", "measured": "measured",
       "expects": "expected", "setting": "differs from what was asked"}, kind="derived",
      caption=f"{asked.check.nunique()} checks, {len(asked)} answers: "
              f"{spelled(f'{n} {status}' for status, n in asked.status.value_counts().items())}")  # fmt: skip
asked["command"] = asked.check.map(asks).fillna("")
settled = asked.check[asked.status.isin(["pass", "fail"]) & (asked.setting == "nothing")]
left = asked[(asked.command != "") & ~asked.check.isin(settled)]
table(left.drop_duplicates("command"),
      {"question": "check", "command": "what would measure it as asked"},
      kind=None, caption="What would measure the checks as asked",
      fold="What would measure the checks as asked")  # fmt: skip

# %% [markdown]
# ## The baseline's other rows
#
# What no section above holds: each row of the baseline, ours beside it or the reason why not. Whether
# the baseline's own value is right is judged on [its page](baseline.html).

# %%
full = f.runs[(f.runs.source == "job") & ~f.runs.rehearsal & (f.runs.status == "ok")]
copying = shares[shares.engine == "layerwise"]
swapped = tables[(tables.quantity == "steady") & tables.swap_s.notna()]
OURS = {
    "s1.gpu": spelled(full.gpu_model.unique()),
    "s1.gpu_memory": spelled(sorted({gigabytes(size, 3) for size in full.gpu_memory_bytes.dropna()})),
    "s1.pcie_peak": f"{significant(links.most_gb_s.max(), 3)} GB/s measured",
    "s1.interconnect": spelled(sorted(set(full.interconnect) - {""})),
    "s1.shared_bus": spelled(f"an all-to-all beside a copy: {row.beside:.2f} × a lone one on {row.machine}"
                             for row in copying[copying.beside.notna() & (copying.slowed != "copies")].itertuples()),
    "s2.flow_shift.new": spelled(full.flow_shift.map("{:g}".format)),
    "s2.boundary_ratio.new": spelled(full.boundary_ratio.map("{:g}".format)),
    "s2.boundary.new": spelled((full.boundary_ratio * 1000).map("{:.0f}".format)),
    "s2.switch.new": spelled(full.switch_step), "s2.tqdm.new": spelled(full.switch_step + 1),
    "s2.params": f"{full.expert_bytes.max() / 2e9:.1f} B, by the bytes of an expert",
    "s2.transformers": "both, random weights", "s2.height": spelled(full.height.map("{} px".format)),
    "s2.steps": f"{spelled(full.steps_whole)}, of which {spelled(sorted(set(full.steps_run)))} ran",
    "s2.width": spelled(full.width.map("{} px".format)), "s2.frames": spelled(full.frames),
    "s3.1.new.status": f"{(full.engine == 'layerwise').sum()} runs of layerwise, complete",
    "s3.1.old.status": f"{full.engine.isin(OLD).sum()} runs of swap and fsdp, complete",
    "s3.1.pure.status": f"{(full.engine == 'resident').sum()} runs of resident, complete",
    "s9.3.a.gap": spelled(f"{ratio(row.new_s / row.swap_s - 1)} over swap on {row.machine}" for row in swapped.itertuples()),
    "s9.3.a.question": "see old against new", "s9.3.b.sizes": spelled(f"{row.deep} / {row.base}" for row in deep.itertuples()),
    "s9.3.b.delta": spelled(f"{gap(row.step_difference_s)} on {row.machine}" for row in deep.itertuples()),
    "s9.3.b.vram": spelled(gigabytes(size, 3) + " more" for size in deep.allocated_difference_bytes),
    "s9.3.c.ulysses": spelled(f"{share(row.collectives_share)} of a step on {row.machine}"
                              for row in copying[copying.gpus > 1].itertuples()),
    "s9.3.c.overlap": spelled(f"{share(row.hidden)} on {row.machine}" for row in copying.itertuples()),
    **dict.fromkeys(("s4.2.mean", "s9.3.c.bandwidth"), spelled(
        f"{row.rate_gb_s:.1f} GB/s on {row.machine}" for row in copying.itertuples())),
}  # fmt: skip
PARTS = {
    "1": ("Hardware (§1)", "not recorded"),
    "2": ("Model configuration (§2)", "SGLang's own lookup, or its earlier runs: not repeated"),
    "3.1": ("Earlier jobs (§3.1)", "SGLang's own jobs"),
    "3.4": ("Trace summary (§3.4)", "our traces are not yet summed up in these columns"),
    "4": ("Bandwidth (§4)", "from times on the CPU; our device events give the rates above"),
    "5": ("Source facts (§5)", "a claim about SGLang's source, judged on the baseline's page"),
    "9.0": ("Job history (§9.0)", "SGLang's own jobs"),
    "9.1": ("Job matrix (§9.1)", "the jobs need more GPUs than were there; see below"),
    "9.3": ("Comparisons (§9.3)", "see old against new, and the checks"),
}  # fmt: skip
for part, (title, why) in PARTS.items():
    names = [name for name in facts if name.startswith(f"s{part}.")]
    rows = pd.DataFrame({"what": map(says, names), "theirs": [facts.text(name) or "claimed" for name in names],
                         "ours": [OURS.get(name) or f"none: {why}" for name in names]})  # fmt: skip
    table(rows, {"what": "row", "theirs": "the baseline", "ours": "ours, or why not"},
          kinds={"theirs": "quoted"}, kind=None, caption=title,
          fold=f"{title}: {counted(len(rows), 'row')}")  # fmt: skip

# %% [markdown]
# ## All runs
#
# One row for each job on a machine: its latest run, with a link to its page. Other tables may hold a
# run against an earlier one of `resident`, on the same boards. Earlier runs are in the [list of
# results](index.html#runs). The baseline's planned jobs (§9.1) are more files than jobs, because "old"
# can mean two engines.

# %%
table(without_record(f.runs).dropna(subset="baseline_job"),
      {"job": "job", "gpus": "GPUs", "purpose": "purpose", "command": "command"}, kind=None,
      caption="The baseline's job matrix (§9.1): what has no record yet",
      empty="All of the baseline's jobs have a record.")  # fmt: skip

# %%
every = f.runs[(f.runs.source == "job") & ~f.runs.rehearsal & f.runs.latest].copy()
every["page"] = every.run.map(page)
every["started_at"] = every.started.str.slice(0, 16).str.replace("T", " ")
every["commit"] = every.commit.str.slice(0, 7)
every["on"] = every.boards.map(lambda boards: " ".join(boards) or "not noted")
table(every.sort_values(["machine", "height", "job", "started"]),
      {"job": "job", "machine": "machine", "status": "status", "step_s": "steady step",
       "sm_mhz": "SM clock", "on": "boards", "started_at": "started, UTC", "commit": "commit"},
      links={"job": "page"}, interval=["step_s"], caption="The latest run of each job, full model",
      fold="The latest run of each job, full model")  # fmt: skip
