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
# # What do these traces say about copies?
#
# A trace of torch.profiler or Nsight Systems has begin and end of all that ran on a GPU. So it tells
# how fast copies are, and what they run beside.

# %% tags=["parameters"]
files = []  # traces: JSON, maybe gzipped, or SQLite exports; one file for each rank of a run
peak_gb_s = None  # of the link between host and GPU; by the GPU's name where nothing is given
link_gb_s = None  # what a benchmark of that link measured, if there is one

# %%
from wanreport.report.notebook import Stop, md, parameters, show, table

parameters(globals(), "files", "peak_gb_s", "link_gb_s")

import pandas as pd
from matplotlib import pyplot as plt

from wanreport.records.files import FileError
from wanreport.report.figures import rows
from wanreport.report.style import INK, WIDTH
from wanreport.traces import read
from wanreport.traces.copies import (
    ALLOCATIONS,
    bandwidth,
    budget,
    devices,
    summary,
    tensors,
    waits,
)
from wanreport.traces.events import in_ms
from wanreport.words import counted, seconds, share

try:
    traces = [read(file) for file in ([files] if isinstance(files, str) else files)]
except FileError as error:
    raise Stop(str(error)) from None
if not traces:
    raise Stop("files: name at least one trace, as in -p files trace.json.gz")


def shown(frame):
    """Name files shortly and give times in ms."""
    if frame.empty:
        return frame
    names = {trace.facts["file"]: trace.facts["file"].rsplit("/", 1)[-1] for trace in traces}
    return in_ms(frame.assign(file=frame.file.map(names))).rename(columns={"bytes": "data_bytes"})


counts, rates = summary(traces, link_gb_s), bandwidth(traces, peak_gb_s, link_gb_s)
beside = counts[counts.span_ns.notna()]
whole = beside[beside.step.isna()]
copied = whole[whole.copies_ns > 0]
down = rates[rates.direction == "HtoD"] if len(rates) else rates

# %%
if len(copied):
    total, hidden, met = (
        copied[name].sum() for name in ("copies_ns", "hidden_ns", "in_collectives_ns")
    )
    moved = down.drop_duplicates(["file", "device"], keep="last")
    rate = moved.bytes.sum() / moved.ns.sum()
    collectives = (
        f", and {share(met / total)} beside collectives" if copied.collectives_ns.sum() else ""
    )
    md(f"""
**{share(hidden / total)} of the time of copies to the device, kernels run beside them**{collectives}.
These copies take {seconds(total / 1e9)} in all, at {rate:.1f} GB/s; beside {seconds((total - hidden) / 1e9)}
of that no kernel runs.
""", "answer")  # fmt: skip
elif len(whole):
    md("**Nothing was copied from the host to a device.**", "answer")
else:
    md("**The files hold nothing that ran on a GPU**, so they cannot tell of its copies.", "answer")

# %%
LANES = {"kernel": "kernels", "collective": "collectives", "copy": "copies from the host"}


def excerpt(trace, device, most=300):
    """Cut out the time around the middle one of the device's long copies, a few copies each way."""
    ran = next(each.ran for _, each in devices(trace) if each.names["device"] == device)
    ran = ran[(ran.kind != "copy") | (ran.direction == "HtoD")].sort_values("start_ns")
    copies = ran[ran.kind == "copy"]
    long = copies[copies.ns >= copies.ns.quantile(0.75)]
    near = long.iloc[max(0, len(long) // 2 - 3) : len(long) // 2 + 3]
    cut = ran[(ran.end_ns > near.start_ns.min()) & (ran.start_ns < near.end_ns.max())]
    return cut.assign(start=(cut.start_ns - near.start_ns.min()) / 1e6,
                      ms=cut.ns / 1e6)  # fmt: skip


if len(copied):
    first = copied.iloc[0]
    trace = next(trace for trace in traces if trace.facts["file"] == first["file"])
    part = excerpt(trace, first.device)
    figure, axes = plt.subplots(figsize=(WIDTH, 2.0))
    for y, kind in enumerate(LANES):
        some = part[part.kind == kind]
        axes.broken_barh([*zip(some.start, some.ms, strict=True)], (y - 0.35, 0.7), facecolor=INK,
                         alpha=0.3 if kind == "kernel" else 0.75, linewidth=0)  # fmt: skip
    rows(axes, [*LANES.values()])
    axes.set_xlabel("milliseconds")
    show(figure, f"What device {first.device} did around {counted(6, 'long copy', 'long copies')} "
         "in the middle of the trace.")  # fmt: skip

# %%
bad = pd.concat([trace.quality.assign(file=trace.facts["file"]) for trace in traces])
lacking = bad[bad.bad]
if len(lacking):
    first = lacking.iloc[0]
    md(f"**How far to trust it.** {counted(len(lacking), 'thing')} in the files {'is' if len(lacking) == 1 else 'are'} "
       f"missing or damaged: {'; '.join(f'{row.check} ({row.count:,})' for row in lacking.itertuples(name='Row'))}. Figures lack that.", "trust")  # fmt: skip
else:
    md("**How far to trust it.** The files are whole. A copy beside which no kernel runs is exposed, "
       "which is not to say that anything waits for it.", "trust")  # fmt: skip

# %% [markdown]
# ## What the files hold

# %%
facts = pd.DataFrame(
    [trace.facts | {"gpu": next(iter(trace.facts["gpus"].values()), None)} for trace in traces]
)
table(shown(facts[["file", "format", "rank", "gpu", "size_bytes", "events"]]), caption="The files.")
table(shown(bad[["file", "check", "count", "what"]]), caption="What to know of them first.",
      empty="Nothing is missing or damaged.")  # fmt: skip

# %%
COUNTED = {"copies": "copies", "blocking": "blocking", "may_block": "may block", "async": "async",
           "unknown": "unknown", "host_device": "host and device", "calls_over_10us": "calls > 10 µs",
           "calls_over_100us": "calls > 100 µs", "collectives": "collectives"}  # fmt: skip
table(shown(counts[counts.step.isna()]), {"file": "file", "device": "device", **COUNTED},
      caption="Copies by how the host fares with them, and calls that take long.",
      note="Blocking: by its call, or as the thread's next call waits. May block: asynchronous, of "
      "pageable memory. Unknown: the call is not in the file.")  # fmt: skip
table(shown(counts[counts.step.notna()]), {"file": "file", "step": "step", **COUNTED},
      caption="The same by step.", fold="By step", empty="No steps were marked.",
      note="Steps that the file does not hold whole have no figures.")  # fmt: skip

# %% [markdown]
# ## How fast copies are
#
# A weighted rate is bytes over time. Percentiles are by bytes: so much of the data went at this rate
# or slower; small copies, which are many and slow, hardly count.

# %%
table(shown(rates), {"file": "file", "device": "device", "direction": "direction", "memory": "memory",
                     "copies": "copies", "data_bytes": "data", "time_ms": "time", "weighted_gb_s": "weighted",
                     "median_by_bytes_gb_s": "median", "p10_by_bytes_gb_s": "P10",
                     "p90_by_bytes_gb_s": "P90"} if len(rates) else None,
      caption="Rates by direction and the host's memory.", empty="No copies were recorded.")  # fmt: skip
if len(rates):
    rates["peak_share"], rates["all_share"] = rates.of_peak, rates.of_peak_in_all
    rates["measured_share"] = rates.of_measured
    table(shown(rates.rename(columns={"share_0_5": "a_share", "share_5_20": "b_share", "share_20_up": "c_share"})),
          {"file": "file", "device": "device", "direction": "direction", "memory": "memory",
           "a_share": "time below 5 GB/s", "b_share": "5 to 20", "c_share": "from 20",
           "peak_share": "of the peak while copying", "all_share": "in all",
           "measured_share": "of the measured rate"},
          caption="Where the time goes, and how much of the link is used.",
          note="The peak is that of 16 PCIe lanes as the GPU's name tells, unless given.")  # fmt: skip

# %% [markdown]
# ## What a step moves

# %%
steps = budget(traces, peak_gb_s, link_gb_s)
table(shown(steps.rename(columns={"share": "compute_share"})),
      {"file": "file", "device": "device", "scenario": "at the rate", "rate_gb_s": "rate",
       "step_bytes": "data a step", "time_ms": "time", "compute_ms": "kernels", "compute_share": "over kernels"}
      if len(steps) else None, kind="derived", empty="No steps were recorded whole.",
      caption="What copying a step's data to the device takes, over the time in which kernels run.")  # fmt: skip

# %% [markdown]
# ## What copies run beside

# %%
table(shown(beside), {"file": "file", "device": "device", "step": "step", "copies_ms": "copies",
                      "hidden_share": "beside kernels", "hidden_alone_ms": "and no collective",
                      "exposed_ms": "beside no kernel", "in_collectives_share": "beside collectives",
                      "outside_gb_s": "rate apart from collectives", "meeting_gb_s": "meeting one",
                      "inside_gb_s": "while beside one"} if len(beside) else None,
      caption="Copies to the device: time hidden, exposed and shared.", empty="Nothing ran on a GPU.",
      note="A row without a step is of the whole trace. The last rate is an estimate, and needs the "
      "measured rate of the link.")  # fmt: skip

# %% [markdown]
# ## What the host waits for

# %%
CALLS = {"file": "file", "call": "call", "calls": "calls", "time_ms": "time", "over_100us": "> 100 µs",
         "idle_ms": "with all GPUs idle", "per_step": "a step"}  # fmt: skip
waiting, allocations = waits(traces), waits(traces, ALLOCATIONS)
table(shown(waiting), CALLS if len(waiting) else None, caption="Calls that wait, or have a stream wait.",
      empty="No such calls were recorded.")  # fmt: skip
table(shown(allocations), {**CALLS, "data_bytes": "data"} if len(allocations) else None,
      caption="Calls that allocate or free memory.", empty="No such calls were recorded.")  # fmt: skip

# %% [markdown]
# ## Which tensors
#
# A size does not prove it, as several tensors can have the same. These sizes are Wan2.2-T2V-A14B's.

# %%
sizes = tensors(traces)
table(shown(sizes.head(20)), {"data_bytes": "size", "copies": "copies", "total_bytes": "in all",
                              "tensor": "can be"} if len(sizes) else None,
      caption="Copies to the device by size.", empty="No copies were recorded.")  # fmt: skip
