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
warmup_iterations = 1
clean_iterations = 1
profile = True
timeout_s = 1800
dit_layerwise_offload = None
dit_cpu_offload = None
use_fsdp_inference = False
dit_offload_prefetch_size = 0.0
cache_dit = False
machine = None  # a folder of results/, for its record; the best one otherwise

# %%
import wanreport.notebook as wanreport_notebook

job = wanreport_notebook.setup(globals())

# %%
from wanreport import figures, jobpage, planned, tables
from wanreport.answers import or_say_why, say
from wanreport.notebook import show, table

record = wanreport_notebook.measure(job, machine=machine)
say(jobpage.title(record))
say(jobpage.first_screen(record))

# %% [markdown]
# ## What was asked
#
# The job as its parameters describe it, and the sizes that really ran. The two differ where the
# machine has too few GPUs for the real thing, and then this page is a rehearsal.

# %%
table(jobpage.request_table(record))
table(tables.kind_legend())

# %% [markdown]
# ### What SGLang would have run
#
# The offload flags are SGLang's own, and its rules decide what they amount to. They are applied
# here as SGLang 0.5.9 applies them, in its order:

# %%
say(jobpage.sglang_sentence(record))

# %% [markdown]
# ### Model settings
#
# SGLang looks a model's settings up by its path. A path that matches nothing falls through to a
# detector, and that one can bring the settings of another model without a warning.

# %%
say(jobpage.settings_sentence(record))

# %% [markdown]
# ### What the engine chose
#
# The engine `stream` measures a few blocks on the machine first, predicts from that what each way
# of moving weights would cost, and tries the two best where the prediction alone should not decide.

# %%
say(planned.plan_sentence(record))
if record["engine"].get("plan"):
    table(planned.plan_table(record))

# %% [markdown]
# ## What ran
#
# Each denoising step has a timestep. Steps at or above the boundary use the high-noise expert, the
# others the low-noise one. The first low-noise step is the *switch*.

# %%
say(jobpage.schedule_sentence(record))
with or_say_why():
    picture, words = figures.schedule(record)
    show(picture, alt=words)

# %% [markdown]
# ## Time
#
# Every step of every iteration, as its slowest rank saw it. A warm-up iteration comes first; the
# clean ones count; the profiled one runs under the profiler and does not count.

# %%
with or_say_why():
    picture, words = figures.per_step(record)
    show(picture, alt=words)

# %% [markdown]
# ### Time budget
#
# The same time, by where it went: the first step, the switch, all other steps, decoding.

# %%
with or_say_why():
    picture, words = figures.time_budget(record)
    show(picture, alt=words)
    table(jobpage.budget_table(record))

# %% [markdown]
# ## Memory
#
# Offloading trades GPU memory for host memory, so both belong here: what the GPU's allocator handed
# out and held in reserve, what was pinned on the host, and the size of the process.

# %%
with or_say_why():
    picture, words = figures.memory(record)
    show(picture, alt=words)
    table(jobpage.memory_table(record))

# %% [markdown]
# ## What moved
#
# The engine counts each copy, allocation and wait. What it must come to follows from the sizes, the
# steps and the branches alone, by a closed formula; the two should be equal to the last byte.

# %%
say(jobpage.counters_sentence(record))
with or_say_why():
    picture, words = figures.moved_bytes(record)
    show(picture, alt=words)
    table(jobpage.moved_table(record))

# %% [markdown]
# ## The engine at the switch
#
# What rank 0 did in the last visits to blocks before the switch and the first ones after it, by
# lane: compute, copies of weights, collectives of sequence parallelism.

# %%
with or_say_why():
    picture, words = figures.timeline(record)
    show(picture, alt=words)

# %% [markdown]
# ## Bits
#
# An engine moves weights and never changes arithmetic. So every iteration ends in the same latents,
# bit for bit, and so does every other engine with the same number of ranks.

# %%
say(jobpage.bits_sentence(record))
with or_say_why():
    table(jobpage.bits_table(record))

# %% [markdown]
# ## Traces

# %%
say(jobpage.traces_sentence(record))

# %% [markdown]
# ## Machine and software

# %%
table(jobpage.machine_table(record))

# %% [markdown]
# ## Reproduce

# %%
say(jobpage.reproduce(record))
