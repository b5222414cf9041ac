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
# # The baseline: SGLang's layerwise offload before the new benchmarks
#
# **The question.** Wan2.2-T2V-A14B has two transformers, and SGLang can keep their weights in host
# memory. The *new* offload moves them layer by layer, with a copy stream of its own. What the
# document calls *old* it describes both as FSDP with CPU offload and as moving a whole transformer
# at the switch, which exclude each other (§5.2 and §9.1). On GPUs that share one PCIe bus and have
# no NVLink: what does the new one cost, and why?

# %% tags=["parameters"]
facts_path = None  # another folder of facts, to see what a change would do

# %%
from wanreport.notebook import parameters, show, table

parameters(globals(), "facts_path")

from IPython.display import HTML

from wanreport.baseline import figures, load_facts, sections

# %%
facts = load_facts(facts_path)
HTML(
    facts.say("""
**The baseline's answer.** The new offload is slower: {s3.2.denoise.new} of denoising against
{s3.2.denoise.old}, which is {s3.2.denoise.percent}. Of these {s3.2.denoise.delta}, the first step
alone makes {s3.3.first.delta}, in which, it supposes, {s3.3.first.why}; the switch makes
{s3.3.switch.delta}. In the steady state a step takes {s3.3.steady.new} against {s3.3.steady.old},
which is {s3.3.steady.percent}. The new offload holds {s3.2.peak.new} of GPU memory at the peak, the
old one {s3.2.peak.old}. For the lost time there are only guesses, stalls in synchronisation first
among them (§7); PCIe bandwidth itself is said to suffice (§4).

**How far to trust it.** Not as a result. The times come from {s3.2.runs} run of each
configuration, under a profiler, so that nothing is known of their spread. A local model path led
SGLang to the wrong configuration: flow_shift {s2.flow_shift.old} where this model wants
{s2.flow_shift.new}, so that the second transformer took over at step {s2.switch.old} and not at
step {s2.switch.new}. The traces end before the GPU's own events, and whether copies overlap with
compute was not seen. The document was frozen on {s0.date}, before runs with the right
configuration.
""")
)

# %% [markdown]
# ## How to read this page
#
# This is that document made again from a data file of its facts: every number as it was printed,
# right or wrong, in the unit that it was printed with. (GB is left as GB even where GiB may have
# been meant.) A number that follows from others is computed again and marked. No fact is judged
# here beyond its arithmetic.
#
# Numbers of different kinds look different, in text and in tables alike:

# %%
table(sections.legend(facts))

# %%
checks = facts.checks()
same, rounding = (sum(c.verdict == kind for c in checks) for kind in ("same", "rounding"))
HTML(
    facts.say(f"""
Of {len(checks)} numbers that follow from others {same} compute to what was printed, {rounding} to
another number that rounding can explain, and {len(checks) - same - rounding} to one that it
cannot: those are listed at the end.
""")
)

# %% [markdown]
# What the document says of itself:

# %%
table(sections.numbers(facts, "0"))

# %%
table(sections.claims(facts, "0"))

# %% [markdown]
# ## 1. Hardware context
#
# One node of a cluster whose GPUs talk to each other over the same PCIe fabric that carries the
# weights.

# %%
table(sections.numbers(facts, "1"))

# %%
table(sections.claims(facts, "1"))

# %% [markdown]
# ## 2. Model configuration
#
# All earlier runs used a local path, which SGLang does not know by name. It then guesses from the
# class of the pipeline, and guesses the wrong member of the family.

# %%
table(sections.numbers(facts, "2"))

# %%
table(sections.claims(facts, "2", "Why the earlier runs had the wrong configuration"))

# %% [markdown]
# This package resolves model paths as SGLang does, and comes to this:

# %%
table(sections.registry_table(facts))

# %% [markdown]
# ## 3. Existing benchmark data

# %%
table(sections.claims(facts, "3", "On all of it"))

# %% [markdown]
# ### 3.1 Job-level summary

# %%
table(sections.numbers(facts, "3.1"))

# %% [markdown]
# ### 3.2 End-to-end timing

# %%
table(sections.numbers(facts, "3.2"))

# %%
HTML(
    facts.say("""
Denoising and decoding together make {= s3.2.denoise.new + s3.2.decode.new | s | 1} for the new
offload and {= s3.2.denoise.old + s3.2.decode.old | s | 1} for the old one; what the rest of each
total is, the document does not say. Peak and free memory add up to
{= s3.2.peak.new + s3.2.free.new | GB | 2} and {= s3.2.peak.old + s3.2.free.old | GB | 2}.
""")
)

# %% [markdown]
# ### 3.3 Per-step timing
#
# The document gives single steps for the first one and for the switch, and averages for the rest.
# An average is drawn as a bar over its steps; no step between is known.

# %%
fig, alt = figures.per_step(facts)
show(fig, alt=alt, caption="Time per step as stated (§3.3); the vertical axis is broken.")

# %%
table(sections.numbers(facts, "3.3"))

# %%
fig, alt = figures.time_budget(facts)
show(fig, alt=alt, caption="The budget as stated (§3.3), and the totals stated in §3.2.")

# %%
HTML(
    facts.say("""
The budget leaves {= s3.2.total.new - s3.3.budget.total.new | s | 1} of the new offload's total in
§3.2 and {= s3.2.total.old - s3.3.budget.total.old | s | 1} of the old one's without a part.
""")
)

# %% [markdown]
# ### 3.4 Profiler trace summary

# %%
table(sections.numbers(facts, "3.4"))

# %%
table(sections.claims(facts, "3.4", "What the traces cannot show"))

# %% [markdown]
# ## 4. PCIe bandwidth analysis
#
# Bandwidths from the CPU's side of the traces: bytes of a copy over the time for which the call
# blocked. They say nothing of copies that return at once.
#
# ### 4.1 Old offload

# %%
table(sections.numbers(facts, "4.1"))

# %%
HTML(
    facts.say("""
The three bands add up to
{= s4.1.band.low.events + s4.1.band.middle.events + s4.1.band.high.events | events | 0},
{= s4.1.band.low.data + s4.1.band.middle.data + s4.1.band.high.data | GB | 1} and
{= s4.1.band.low.time + s4.1.band.middle.time + s4.1.band.high.time | s | 1}; the table above them
has {s4.1.large} large transfers, {s4.1.data} and {s4.1.time}.
""")
)

# %%
table(sections.claims(facts, "4.1"))

# %% [markdown]
# ### 4.2 New offload

# %%
table(sections.numbers(facts, "4.2"))

# %%
table(sections.claims(facts, "4.2"))

# %% [markdown]
# ### 4.3 Theoretical PCIe budget

# %%
table(sections.numbers(facts, "4.3"))

# %%
table(sections.claims(facts, "4.3", "The conclusion drawn from it"))

# %%
HTML(
    facts.say("""
These {s4.3.peak.bytes} a step stand beside {s6.1.new_each.g4} in §6.1. The asynchronous copies of
§4.2 come to {= s4.2.async_data / s2.steps | GB | 1} for each of the {s2.steps} steps, if those are
what the trace holds.
""")
)

# %% [markdown]
# ## 5. Source code verified facts

# %%
HTML(facts.say("Each citation is of a file and its lines, below {s5.root}."))

# %% [markdown]
# ### 5.1 New offload (LayerwiseOffloadManager)

# %%
table(sections.claims(facts, "5.1", "The new offload in the source code"))

# %% [markdown]
# ### 5.2 Old offload (FSDP CPUOffloadPolicy)

# %%
table(sections.claims(facts, "5.2", "The old offload in the source code"))

# %% [markdown]
# ### 5.3 Mutual exclusion

# %%
table(sections.claims(facts, "5.3", "Flags that exclude each other"))

# %% [markdown]
# What SGLang's published code makes of flags, this package resolves too; see §9.1.
#
# ### 5.4 Ulysses sequence parallelism

# %%
table(sections.claims(facts, "5.4", "Ulysses in the source code"))

# %% [markdown]
# ### 5.5 Timestep schedule

# %%
table(sections.claims(facts, "5.5", "The schedule in the source code"))

# %% [markdown]
# The schedule needs no GPU: both can be computed here, and with them the switch.

# %%
fig, alt = figures.schedules(facts)
show(fig, alt=alt, caption="Timesteps for both shifts, computed; rings mark the switch.")

# %%
table(sections.schedule_table(facts))

# %% [markdown]
# ## 6. GPU scaling analysis
#
# ### 6.1 The new offload does not scale with the number of GPUs
#
# Read off the source code, not measured: in the new offload each GPU moves all weights, in the old
# one its share of them.

# %%
fig, alt = figures.bytes_per_step(facts)
show(fig, alt=alt, caption="Bytes over PCIe in one step (§6.1); dashed, as none was measured.")

# %%
table(sections.numbers(facts, "6.1"))

# %%
table(sections.claims(facts, "6.1", "What follows, in the document's view"))

# %% [markdown]
# ### 6.2 What the prefetch size costs

# %%
table(sections.numbers(facts, "6.2"))

# %% [markdown]
# ## 7. Hypothesized causes
#
# Why is the new offload slower in the steady state? Guesses; none was measured.

# %%
table(sections.numbers(facts, "7"))

# %%
table(sections.claims(facts, "7", "What the guesses are to explain"))

# %% [markdown]
# ## 8. PR #15511 reference numbers
#
# The pull request that brought the new offload measured it on GPUs with NVLink, where, by its
# numbers, steady steps take about as long.

# %%
table(sections.numbers(facts, "8"))

# %%
listed = (
    "s8.first.{0} + (s8.early.last - s8.early.first + 1) * s8.early.{0} + s8.switch.{0}"
    " + (s8.late.last - s8.late.first + 1) * s8.late.{0}"
)
HTML(
    facts.say(f"""
The steps as listed add up to {{= {listed.format("old")} | s | 1}} with the old offload and to
{{= {listed.format("new")} | s | 1}} with the new one.
""")
)

# %%
table(sections.claims(facts, "8", "Why NVLink makes the difference, in the document's view"))

# %% [markdown]
# ## 9. Pending new benchmarks
#
# ### 9.0 Job history

# %%
table(sections.numbers(facts, "9.0"))

# %%
table(sections.claims(facts, "9.0", "What went wrong, and the mend"))

# %% [markdown]
# ### 9.1 Job matrix

# %%
table(sections.numbers(facts, "9.1"))

# %%
table(sections.claims(facts, "9.1", "What all jobs share"))

# %% [markdown]
# Flags say less than they seem to: SGLang fills in what was not given. Resolved as its published
# code resolves them, these flags lead to:

# %%
table(sections.flags_table(facts))

# %% [markdown]
# ### 9.2 What to check in the new results

# %%
table(sections.numbers(facts, "9.2"))

# %% [markdown]
# The post-benchmark report answers these from records.
#
# ### 9.3 Key comparisons to make

# %%
table(sections.claims(facts, "9.3", "Comparisons A, B and C"))

# %%
HTML(
    facts.say("""
The gap that comparison A starts from, {s9.3.a.gap}, stands beside {s3.2.denoise.percent} of
denoising time, {s3.2.total.percent} of the total and {s3.3.steady.percent} of a steady step.
""")
)

# %% [markdown]
# ## 10. Open questions for future work

# %%
table(sections.claims(facts, "10", "Ideas"))

# %% [markdown]
# ## 11. File index

# %%
table(sections.numbers(facts, "11"))

# %% [markdown]
# ## Numbers that compute to something else
#
# Arithmetic alone, over the numbers as printed: which of two numbers is the right one, it cannot
# say.

# %%
table(sections.recomputed(facts))
