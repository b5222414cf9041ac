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
results_dirs = ["results", "results/local"]

# %%
import wanreport.notebook as wanreport_notebook

wanreport_notebook.parameters(globals(), "results_dirs")

# %%
from wanreport import answers, benches, comparisons, curve, figures, tables, verdicts
from wanreport.answers import or_say_why, say
from wanreport.notebook import show, table

records = answers.load_records(results_dirs)
earlier = answers.load_earlier(results_dirs)
asked = verdicts.baseline_checks(records)
further = verdicts.further_checks(records)
say(comparisons.title(records))
say(comparisons.first_screen(records, asked, further, earlier))

# %%
table(verdicts.verdict_table([*asked, *further], caption="All verdicts", evidence=False))

# %% [markdown]
# Numbers of different kinds look different on this page:

# %%
table(tables.kind_legend())

# %% [markdown]
# ## The jobs at hand
#
# Every job has a row, also one that failed, ran out of memory or cannot run here.

# %%
for html in comparisons.jobs_tables(records):
    table(html)

# %% [markdown]
# ## What the baseline wanted checked
#
# The checks of its section 9.2, and its prediction of how the gap grows with the GPUs. Those about
# time, memory or overlap accept only records of the full model on GPUs; nothing that a rehearsal
# shows can answer them.

# %%
table(verdicts.verdict_table(asked, caption="The baseline's checks"))

# %% [markdown]
# ## What else the records tell
#
# Schedule, counters, bytes and bits can be checked at every scale.

# %%
table(verdicts.verdict_table(further, caption="Further checks"))

# %% [markdown]
# ## A. Old against new, with the right flow shift
#
# Does the gap between the old and the new offload grow, shrink or turn round? What the baseline
# calls old is two engines that exclude each other, so each is compared on its own: `fsdp` and
# `swap`. Each machine has a section; in it engines are compared at the same work only.

# %%
for machine, here in benches.by_machine(records, earlier).items():
    say(f"### {machine}")
    for bench in here:
        comparison = comparisons.compare_old_and_new(bench)
        say(comparison.answer)
        for picture, words in figures.side_by_side(bench.records if bench else ()):
            show(picture, alt=words)
        for html in comparison.tables:
            table(html)

# %% [markdown]
# ### What a sample of the steps tells of the whole
#
# Most jobs of the full model ran a sample of their schedule. Where one also ran whole, what the
# sample extrapolates to can be held against it.

# %%
table(benches.samples_table(records))

# %% [markdown]
# ## B. More prefetch against less
#
# By how much does a step get shorter, what does it cost in memory, and is it the synchronisation
# that changes?

# %%
comparison = comparisons.compare_prefetch(records)
say(comparison.answer)
for html in comparison.tables:
    table(html)

# %% [markdown]
# ## C. What only the GPU's timeline can tell
#
# Jobs with a profiled iteration have one, of device events around the switch. Their traces lie
# beside the records, for Perfetto.

# %%
comparison = comparisons.compare_lanes(records)
say(comparison.answer)
for html in comparison.tables:
    table(html)

# %% [markdown]
# ## More GPUs
#
# Does offloading cost more or less on more GPUs? What was measured stands beside predictions made
# before: the baseline's, which expects the new offload to lose and the old one to gain, and our own
# where there are any, computed from what fewer GPUs were measured at. Whether an overhead grows is
# judged between the fewest and the most GPUs, from two on, where the intervals are apart.

# %%
found = curve.curves(records)
say(curve.at_hand(found))
for one in found:
    say(f"### {tables.markdown(one.title)}")
    for picture, words in curve.pictures(one):
        show(picture, alt=words)
    say(curve.answer(one))
    for html in curve.tables(one):
        table(html)

# %% [markdown]
# ## Engines beside their peers
#
# From how many tokens on does moving weights cost nothing, and which engine does it best: ours, or
# another project's on the same blocks, shapes and machine? `resident`, which has all weights on the
# device, is what the others are held against.

# %%
from wanreport import crossover, peers

campaigns = peers.load_campaigns(results_dirs)
with or_say_why():
    picture, words = crossover.draw(campaigns)
    show(picture, alt=words)
    say(crossover.answer(campaigns))
for html in crossover.tables(campaigns):
    table(html)

# %% [markdown]
# ### Predicted against measured
#
# `planned` is `stream` with settings that its planner chose for the shape, within a given room.

# %%
with or_say_why():
    say(peers.foretold_sentence(campaigns))
    table(tables.fold("Each plan", *peers.foretold_tables(campaigns)))

# %% [markdown]
# ### Each setting alone
#
# Rows of `stream` that differ in one setting only.

# %%
with or_say_why():
    for html in peers.ablation_tables(campaigns):
        table(html)

# %% [markdown]
# ### Every row, and how it was measured
#
# A campaign runs in one go: every engine in processes of its own, and `resident` first and last,
# which shows how far the machine itself drifted.

# %%
for path, campaign in campaigns:
    both = [peers.engines_table(path, campaign), peers.conditions_table(path, campaign)]
    table(tables.fold(f"{peers.words(campaign)} ({path.stem})", *both))

# %% [markdown]
# ## What moved
#
# In units of one whole expert. A tiny model has fewer blocks, so its shares are not those of the
# full model.

# %%
with or_say_why():
    picture, words = figures.compare_moved(records)
    show(picture, alt=words)
table(comparisons.counters_table(records))

# %% [markdown]
# ## Bits
#
# Which engine it was must not show in the result. Each number of ranks is a column of its own.

# %%
for html in comparisons.bits_tables(records):
    table(html)
