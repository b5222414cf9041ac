"""Choosing the settings of `stream`: candidates under a budget, their predictions, the choice."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from wanreport.jobs.job import Job
from wanreport.jobs.settings import RING, StreamSettings
from wanreport.planner.cost import Inputs, Prediction, predict
from wanreport.words import counted, gigabytes, seconds

DEFAULT_ROOM = 4  # blocks, where a job gives no budget: next to nothing, and enough to stream
MIN_ROOM = 2
CHUNK = 1 << 16  # bytes; copies begin at its multiples
MARGIN = 0.9  # of a window: what starts in it should also end in it
ALIKE = 0.001  # relative difference below which two predictions are one
CLOSE = 0.1  # … below which they are tried
GAIN = 0.005  # … and by which a trial must be better to overrule them
Trial = Callable[[Sequence[StreamSettings]], list[list[float]]]
SHAPE = attrgetter("num_gpus", "height", "width", "num_frames", "cfg", "dtype", "compile",
                   "enable_cfg_parallel", "transfer")  # fmt: skip
"""What a job shares with another whose measured inputs hold for it too."""


def room(
    budget_gb: float | None, block_bytes: int, outer_bytes: int, transfer: str = "bf16"
) -> int:
    """How many blocks ``budget_gb`` (GB, 10^9 bytes) holds beside both experts' outer parts."""
    if budget_gb is None:
        return DEFAULT_ROOM
    staging = RING * (transfer != "bf16")  # a block's room each, which is more than they need
    return max(0, int((budget_gb * 1e9 - 2 * outer_bytes) // block_bytes) - staging)


@dataclass(frozen=True)
class Candidate:
    settings: StreamSettings
    predicted: Prediction

    @property
    def kind(self) -> tuple[bool, bool]:
        """How it moves blocks: in windows, in parts."""
        return self.settings.windows is not None, self.settings.shard


def candidates(inputs: Inputs, room: int) -> list[Candidate]:
    """The settings worth a thought with room for so many blocks, the best predicted first.

    The best takes least time over all steps. Of two that are predicted alike the plainer comes
    first, and then the one that moves fewer blocks, which is safer. What the device cannot hold is
    left out, unless nothing else is left. All are packed where packing was measured.
    """
    found = [Candidate(s, predict(inputs, s)) for s in _settings(inputs, room)]
    if (most := inputs.device_bytes) is not None:
        fits = [c for c in found if c.predicted.device_bytes <= most]
        found = fits or [min(found, key=lambda c: c.predicted.device_bytes)]
    alike = min(c.predicted.total(inputs.steps) for c in found) * (1 + ALIKE)
    return sorted(found, key=lambda c: (max(c.predicted.total(inputs.steps), alike), c.kind,
                                        c.settings.moving(inputs.blocks)))  # fmt: skip


def _settings(inputs: Inputs, room: int) -> list[StreamSettings]:
    blocks = inputs.blocks
    plainest = StreamSettings(transfer=inputs.transfer)  # type: ignore[arg-type]
    if room >= 2 * blocks:
        return [replace(plainest, slots=0, residents=blocks, both=True)]

    def layouts(*slots: int) -> list[StreamSettings]:
        # With each number of slots as many residents as fit, if a multiple of the slots streams:
        # a pass's last block and the first of the next one never wait for each other's slot.
        residents = [(k, room - k - (room - k - blocks) % k) for k in slots]
        return [replace(plainest, slots=k, residents=r) for k, r in residents if r >= 0]

    if room >= blocks:
        plain = apart = [replace(plainest, slots=0, residents=blocks)]
    else:
        # Windows ask for a slot more than plain copies, to have two visits for a load. And the copy
        # of one part goes beside the gather of another only with a third slot.
        plain, apart = layouts(2, 3) or [plainest], layouts(3, 4)
    if inputs.ranks == 1:
        return plain
    windows = [replace(s, windows=window_quotas(inputs, s)) for s in apart or plain]
    return plain + windows + [replace(s, shard=True) for s in apart]


def scaled(settings: StreamSettings, blocks: int, fewer: int) -> StreamSettings:
    """The settings for an expert of fewer blocks, with about the same share of residents."""
    residents, slots = settings.residents, settings.slots
    less = fewer if residents >= blocks else residents * fewer // blocks // slots * slots
    return replace(settings, residents=less)


def window_quotas(inputs: Inputs, settings: StreamSettings) -> tuple[int, int, int]:
    """Bytes for each of a branch's windows: its length times the rate, less a margin.

    Where that does not bring all that a visit must on average, all are enlarged alike, so that
    copies run into collectives, unless it is better to have a block wait for the rest.
    """
    need = settings.moving(inputs.blocks) * inputs.sent(settings) / inputs.visits(settings)
    quotas = [MARGIN * seconds * inputs.local.rate for seconds in inputs.windows_s]
    scale = max(1.0, need / sum(quotas)) if sum(quotas) and inputs.local.spills else 1.0
    # Rounded up, lest a few bytes be left for which a block has to wait.
    pre, attend, post = (CHUNK * math.ceil(quota * scale / CHUNK) for quota in quotas)
    return pre, attend, post


def make_plan(
    inputs: Inputs, room: int, trial: Trial | None = None
) -> tuple[dict[str, Any], StreamSettings]:
    """Choose settings, and say how: the record's ``plan``, JSON-ready, and the settings.

    The budget holds ``room`` blocks, see :func:`room`. A ``trial`` measures seconds of a step of a
    small model with two settings, in several turns each. It is asked about the best candidate and
    the best other one, if one comes close and preferably moves blocks in another way. It overrules
    them only by more than its turns differ: with every turn of the second the faster.
    """
    found = candidates(inputs, room)
    chosen, by, tried = 0, "prediction", []
    close = found[0].predicted.step_s * (1 + CLOSE)
    others = [i for i, c in enumerate(found) if i and c.predicted.step_s <= close]
    if trial and others and found[0].settings.moving(inputs.blocks):
        rival = next((i for i in others if found[i].kind != found[0].kind), others[0])
        turns = trial([found[i].settings for i in (0, rival)])
        tried = [{"candidate": i, "step_s": statistics.median(each), "turns_s": each}
                 for i, each in zip((0, rival), turns, strict=True)]  # fmt: skip
        if max(turns[1]) < min(turns[0]) * (1 - GAIN):
            chosen, by = rival, "trial"
    plan = {
        "inputs": asdict(inputs), "room": room, "candidates": [asdict(c) for c in found],
        "chosen": chosen, "by": by, "trial": tried,
    }  # fmt: skip
    return plan, found[chosen].settings


def describe(settings: Mapping[str, Any]) -> str:
    """Settings, as a plan stores them, in words."""
    if settings["both"]:
        return "both experts resident"
    words = [counted(settings[key], key[:-1]) for key in ("residents", "slots") if settings[key]]
    words += ["in windows"] * bool(settings["windows"]) + ["sharded"] * settings["shard"]
    transfer = settings.get("transfer", "bf16")
    return ", ".join(words + [transfer] * (transfer != "bf16"))


def from_records(
    job: Job, found: Iterable[tuple[Path, Mapping[str, Any]]]
) -> tuple[Path, dict[str, Any]] | None:
    """The plan for `job`, without a trial, from the latest record of its shape, and its path."""
    fit = [(record["started_at"], path, plan["inputs"]) for path, record in found
           if (plan := record["engine"].get("plan")) and plan.get("inputs")
           and SHAPE(Job.model_construct(**record["job"])) == SHAPE(job)]  # fmt: skip
    if not fit:
        return None
    _, path, stored = max(fit, key=lambda entry: entry[:2])
    inputs = Inputs(**{**stored, "steps": job.num_inference_steps})
    blocks = room(job.vram_budget_gb, inputs.block_bytes, inputs.outer_bytes, job.transfer)
    return path, make_plan(inputs, blocks)[0]


def lines(plan: Mapping[str, Any], *, timed: bool) -> list[str]:
    """A plan's candidates as lines of text, the chosen one marked; `timed` shows their seconds."""
    names = ("step", "first", "switch") if timed else ()
    rows = [(" ", *names, "weights", "settings")]
    for index, candidate in enumerate(plan["candidates"]):
        mark, predicted = ">" if index == plan["chosen"] else " ", candidate["predicted"]
        times = (seconds(predicted[f"{name}_s"]) for name in names)
        weights = gigabytes(predicted["weights_bytes"])
        rows.append((mark, *times, weights, describe(candidate["settings"])))
    table = [f"{row[0]} {''.join(f'{word:<11}' for word in row[1:-1])}{row[-1]}" for row in rows]
    return [f"room for {counted(plan['room'], 'block')}", *table, f"chosen by {plan['by']}"]
