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
# # The baseline on trial: SGLang's layerwise offload, every number judged
#
# A frozen document says what it costs to stream the weights of Wan2.2-T2V-A14B's two transformers
# from host memory on GPUs that share one PCIe bus: the *new* offload, layer by layer, against an
# *old* one. **Which of its conclusions survive?**

# %% tags=["parameters"]
facts_path = None  # another folder of facts, to see what a change would do
results_dirs = ["results", "results/local"]  # records that may test its predictions

# %%
from wanreport.notebook import parameters, show, table

parameters(globals(), "facts_path", "results_dirs")

from IPython.display import HTML

from wanreport.analysis import frames
from wanreport.baseline import figures, load_facts, overview, sections
from wanreport.baseline.ledger import load_ledger

# %%
facts = load_facts(facts_path)
ledger = load_ledger(facts, frames.load(results_dirs))
HTML(overview.first_screen(ledger))

# %%
table(overview.conclusions_table(ledger))

# %% [markdown]
# **Words.** The *new* offload keeps the layers of a transformer in host memory and copies each to
# the GPU shortly before it runs; *prefetch* is by how many layers. *FSDP*, PyTorch's sharding,
# gives each GPU a part of every layer, to be gathered when the layer runs. *Ulysses* splits the
# tokens of the video over the GPUs, which swap parts around each attention: *all-to-all*. A step
# has two *branches*, with and without the prompt, each a pass over all layers. At the *switch* the
# second transformer takes over; *flow_shift* says when. *H2D* is from host to GPU.

# %%
HTML(
    sections.say(
        ledger,
        """
**How far to trust what stands.** The times come from {s3.2.runs} run of each configuration, under
a profiler, so that nothing is known of their spread. A local model path led SGLang to the wrong
configuration: flow_shift {s2.flow_shift.old} where this model wants {s2.flow_shift.new}. The traces
end before the GPU's own events, and whether copies overlap with compute was not seen. The document
is dated {s0.date}, before runs with the right configuration.
""",
    )
)

# %% [markdown]
# ## How to read this page
#
# This is that document made again from a data file of its facts: every number as it was printed,
# right or wrong, in the unit that it was printed with; where GB may have been meant as GiB, the
# other reading stands below it. Each number that anything could judge carries a mark, and the mark
# leads to its row of [the ledger](#Ledger), with the working.

# %%
table(overview.legend(ledger))

# %% [markdown]
# Numbers of different kinds look different, in text and in tables alike:

# %%
table(sections.legend(ledger))

# %% [markdown]
# What the document says of itself:

# %%
table(sections.numbers(ledger, "0"))

# %%
table(sections.claims(ledger, "0"))

# %% [markdown]
# ## 1. Hardware context
#
# One node of a cluster whose GPUs talk to each other over the same PCIe fabric that carries the
# weights.

# %%
table(sections.numbers(ledger, "1"))

# %%
table(sections.claims(ledger, "1"))

# %% [markdown]
# ## 2. Model configuration
#
# All earlier runs used a local path, which SGLang does not know by name. It then guesses from the
# class of the pipeline, and guesses the wrong member of the family.

# %%
table(sections.numbers(ledger, "2"))

# %%
table(sections.claims(ledger, "2", "Why the earlier runs had the wrong configuration"))

# %% [markdown]
# ## 3. Existing benchmark data

# %%
table(sections.claims(ledger, "3", "On all of it"))

# %% [markdown]
# ### 3.1 Job-level summary

# %%
table(sections.numbers(ledger, "3.1"))

# %% [markdown]
# ### 3.2 End-to-end timing

# %%
table(sections.numbers(ledger, "3.2"))

# %% [markdown]
# ### 3.3 Per-step timing
#
# The document gives single steps for the first one and for the switch, and averages for the rest.
# An average is drawn as a bar over its steps; no step between is known.

# %%
fig, alt = figures.per_step(facts)
show(fig, alt=alt, caption="Time per step as stated (§3.3); the vertical axis is broken.")

# %%
table(sections.numbers(ledger, "3.3"))

# %% [markdown]
# ### 3.4 Profiler trace summary

# %%
table(sections.numbers(ledger, "3.4"))

# %%
table(sections.claims(ledger, "3.4", "What the traces cannot show"))

# %% [markdown]
# ## 4. PCIe bandwidth analysis
#
# Bandwidths from the CPU's side of the traces: bytes of a copy over the time for which the call
# blocked. They say nothing of copies that return at once.
#
# ### 4.1 Old offload

# %%
table(sections.numbers(ledger, "4.1"))

# %%
table(sections.claims(ledger, "4.1"))

# %% [markdown]
# ### 4.2 New offload

# %%
table(sections.numbers(ledger, "4.2"))

# %%
table(sections.claims(ledger, "4.2"))

# %% [markdown]
# ### 4.3 Theoretical PCIe budget

# %%
table(sections.numbers(ledger, "4.3"))

# %%
table(sections.claims(ledger, "4.3", "The conclusion drawn from it"))

# %% [markdown]
# ## 5. Source code verified facts

# %%
HTML(sections.say(ledger, "Each citation is of a file and its lines, below {s5.root}."))

# %% [markdown]
# They were looked up in SGLang's releases, file by file:

# %%
table(overview.releases_table(ledger))

# %% [markdown]
# ### 5.1 New offload (LayerwiseOffloadManager)

# %%
table(sections.claims(ledger, "5.1", "The new offload in the source code"))

# %% [markdown]
# ### 5.2 Old offload (FSDP CPUOffloadPolicy)

# %%
table(sections.claims(ledger, "5.2", "The old offload in the source code"))

# %% [markdown]
# ### 5.3 Mutual exclusion

# %%
table(sections.claims(ledger, "5.3", "Flags that exclude each other"))

# %% [markdown]
# ### 5.4 Ulysses sequence parallelism

# %%
table(sections.claims(ledger, "5.4", "Ulysses in the source code"))

# %% [markdown]
# ### 5.5 Timestep schedule

# %%
table(sections.claims(ledger, "5.5", "The schedule in the source code"))

# %% [markdown]
# The schedule needs no GPU: both can be computed here, and with them the switch.

# %%
fig, alt = figures.schedules(facts)
show(fig, alt=alt, caption="Timesteps for both shifts, computed; rings mark the switch.")

# %% [markdown]
# ## 6. GPU scaling analysis
#
# ### 6.1 The new offload does not scale with the number of GPUs
#
# Read off the source code, not measured: in the new offload each GPU moves all weights, in the old
# one its share of them, says the document.

# %%
fig, alt = figures.bytes_per_step(facts)
show(
    fig,
    alt=alt,
    caption="Bytes over PCIe in one step as stated (§6.1); none was measured.",
)

# %%
table(sections.numbers(ledger, "6.1"))

# %%
table(sections.claims(ledger, "6.1", "What follows, in the document's view"))

# %% [markdown]
# ### 6.2 What the prefetch size costs

# %%
table(sections.numbers(ledger, "6.2"))

# %% [markdown]
# ## 7. Hypothesized causes
#
# Why is the new offload slower in the steady state? Guesses; none was measured.

# %%
table(sections.numbers(ledger, "7"))

# %%
table(sections.claims(ledger, "7", "What the guesses are to explain"))

# %% [markdown]
# ## 8. PR #15511 reference numbers
#
# The pull request that brought the new offload measured it on GPUs with NVLink, where, by its
# numbers, steady steps take about as long.

# %%
table(sections.numbers(ledger, "8"))

# %%
table(sections.claims(ledger, "8", "Why NVLink makes the difference, in the document's view"))

# %% [markdown]
# ## 9. Pending new benchmarks
#
# ### 9.0 Job history

# %%
table(sections.numbers(ledger, "9.0"))

# %%
table(sections.claims(ledger, "9.0", "What went wrong, and the mend"))

# %% [markdown]
# ### 9.1 Job matrix

# %%
table(sections.numbers(ledger, "9.1"))

# %%
table(sections.claims(ledger, "9.1", "What all jobs share"))

# %% [markdown]
# ### 9.2 What to check in the new results

# %%
table(sections.numbers(ledger, "9.2"))

# %% [markdown]
# The post-benchmark report answers these from records.
#
# ### 9.3 Key comparisons to make

# %%
table(sections.claims(ledger, "9.3", "Comparisons A, B and C"))

# %% [markdown]
# ## 10. Open questions for future work

# %%
table(sections.claims(ledger, "10", "Ideas"))

# %% [markdown]
# ## 11. File index

# %%
table(sections.numbers(ledger, "11"))

# %% [markdown]
# ## Ledger
#
# Every fact of the document, in its order, with the verdict and how it comes about.

# %%
table(overview.checks_table(ledger))

# %%
table(overview.ledger_table(ledger))
