"""The engines beside their peers: what campaigns say, as tables and sentences of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .answers import NotAnswerable
from .campaigns import (
    FIRST,
    LAST,
    PEERS,
    Campaign,
    CampaignError,
    Row,
    drift,
    engine_of,
    find_campaigns,
    identical,
    link,
    moved,
    name_of,
    note,
    own_limit,
    peak,
    pinned_bytes,
    ratio,
    shapes,
    step_ms,
)
from .cost import StreamSettings
from .local import project_root
from .notebook import Stop
from .plan import describe
from .tables import (
    EM_DASH,
    NBSP,
    Cell,
    Column,
    Kind,
    counted,
    facts_table,
    gigabytes,
    html_table,
    markdown,
    percent,
    significant,
    tick,
)
from .verdicts import apart

ORDER = ("resident", "swap", "fsdp", "layerwise", "stream", "planned", *PEERS)
ABSENT = "No campaign of engines beside their peers was measured on a GPU yet."

Found = tuple[Path, Campaign]


def load_campaigns(directories: Sequence[str | Path]) -> list[Found]:
    """Return the campaigns below results folders of the project, by machine, ranks and branches.

    Raises
    ------
    Stop
        Naming every file that cannot be used.
    """
    root, found = project_root(), []
    for directory in directories:
        try:
            here = find_campaigns(root / directory)
        except CampaignError as error:
            raise Stop(str(error)) from None
        found += [(Path(directory) / path.relative_to(root / directory), one) for path, one in here]
    return sorted(found, key=lambda item: (*setting(item[1]), item[0]))


def setting(report: Campaign) -> tuple[str, int, int, bool]:
    """What must be alike for engines to be compared: machine class, ranks, branches, compile."""
    asked = report["settings"]
    return report["machine"]["class"], asked["ranks"], asked["branches"], asked["compile"]


def words(report: Campaign) -> str:
    """The setting in plain text: "2x NVIDIA H200, NVLink; 2 ranks, 1 branch"."""
    machine, ranks, branches, compiled = setting(report)
    text = f"{machine}; {counted(ranks, 'rank')}, {counted(branches, 'branch', 'branches')}"
    return text + (", compiled" if compiled else "")


def timed(found: Sequence[Found]) -> list[Found]:
    """Those that ran on GPUs: on a CPU no times are taken."""
    return [item for item in found if item[1]["settings"]["device"] == "cuda"]


def at_hand(found: Sequence[Found]) -> str:
    """Return how many campaigns there are, as Markdown."""
    real, all_of = len(timed(found)), counted(len(found), "campaign")
    if not real:
        bits = f" {all_of} on a CPU can show bits only." if found else ""
        return f"*Not measured.* {ABSENT}{bits}"
    return f"{all_of} at hand, {real} of them on GPUs; those on a CPU can show bits only."


def by_machine(found: Sequence[Found]) -> dict[str, list[Found]]:
    """Return the campaigns of each machine and interconnect, its name as Markdown."""
    groups: dict[str, list[Found]] = {}
    for item in found:
        groups.setdefault(markdown(setting(item[1])[0]), []).append(item)
    return groups


# One campaign ------------------------------------------------------------------------------------


def conditions_table(path: Path, report: Campaign) -> str:
    """Return where, with what and how a campaign was measured, as HTML."""
    machine, software, asked = report["machine"], report["software"], report["settings"]
    gpus = f"{asked['ranks']} of {machine['gpu_count']}x {machine['gpu_name']}"
    before, after = link(report), link(report, LAST)
    rates = [f"{significant(rate, 3)} GB/s" for rate in (before, after) if rate is not None]
    return facts_table(
        [
            ("GPUs", gpus if machine["gpu_count"] else "none: a CPU, which shows bits only"),
            ("driver; CUDA", f"{machine['driver'] or 'none'}; {software['cuda'] or 'none'}"),
            ("NCCL; what it went over", f"{software['nccl'] or 'none'}; {transport(report)}"),
            ("link, pinned, all ranks at once", " first, last ".join(rates) or None),
            ("work", f"{counted(asked['blocks'], 'block')} ({gigabytes(report['bytes'])}), "
             f"{counted(asked['branches'], 'branch', 'branches')} a step, segments "
             f"{'compiled' if asked['compile'] else 'eager'}"),
            ("versions", ", ".join([
                *(f"{key} {software[key]}" for key in ("torch", "diffusers", "python")),
                *(f"{name} {peer['version']}" for name, peer in report["peers"].items()
                  if name != "diffusers")])),
            ("commit", ", ".join(_commits(report))),
            ("file", path.as_posix()),
        ],
        caption=f"How {path.stem} was measured: {words(report)}",
    )  # fmt: skip


def transport(report: Campaign) -> str:
    """What collectives between ranks went over, in NCCL's words."""
    if report["settings"]["ranks"] == 1:
        return "one rank, no collectives"
    if report["settings"]["device"] == "cpu":
        return "none: gloo on a CPU"
    each = [row["transport"] for row in report["rows"] if row["ranks"]]
    if None in each:
        return "which transport it chose was not recorded"
    ways = sorted({way for row in each for way in row})
    through = {"P2P": "from GPU to GPU", "SHM": "through host memory", "NET": "over the network"}
    said = [f"{way} ({through.get(way.partition('/')[0], 'as it calls it')})" for way in ways]
    return ", ".join(said) or "its log names no transport"


def _commits(report: Campaign) -> list[str]:
    dirty = {True: " with changes", False: "", None: " (changes not recorded)"}
    return sorted(
        {f"{(row['git_sha'] or 'unknown')[:12]}{dirty[row['git_dirty']]}" for row in report["rows"]}
    )


def engines_table(path: Path, report: Campaign) -> str:
    """Return tokens × engine of a campaign, as HTML: times where it ran on GPUs, and bits."""
    cuda = report["settings"]["device"] == "cuda"
    rows: list[dict[str, object]] = []
    for tokens in shapes(report):
        here = [row for row in report["rows"] if row["tokens"] == tokens]
        rows += [_cells(report, row) for row in sorted(here, key=_order)]
    columns = [
        Column("tokens", "tokens"),
        Column("step", "step", "median [95 % interval], n"),
        Column("over", "to resident", "first, last run"),
        Column("moved", "moved", "step and rank"),
        Column("limit", "to its limit"),
        Column("peak", "device"),
        Column("pinned", "pinned"),
    ]
    return html_table(
        rows,
        [
            Column("engine", "engine", numeric=False),
            *(columns if cuda else columns[:1]),
            Column("bits", "bits", numeric=False),
            Column("note", "note", numeric=False),
        ],
        caption=f"Engines beside their peers: {words(report)} ({path.stem})",
        note=_drifts(report) + " An engine's limit is the larger of resident's step and of the "
        "bytes that it must move in a steady step over the link's pinned bandwidth, all ranks at "
        "once; a peer's copies are not counted, so each of its branches is taken to bring every "
        "block. Device is the fullest rank's allocated peak, pinned the host's memory."
        if cuda
        else "On a CPU only bits are checked: no times are claimed, and none are kept.",
        kind="measured" if cuda else None,
    )


def _drifts(report: Campaign) -> str:
    """How far the machine itself drifted, from the first run of resident to the last."""
    said = [
        f"{tokens:,} tokens {percent(over, 2, signed=True)}"
        for tokens in shapes(report)
        if (over := drift(report, tokens)) is not None
    ]
    before, after = link(report), link(report, LAST)
    if before and after:
        said.append(f"the link {percent(after / before - 1, 2, signed=True)}")
    text = "; ".join(said) or "not measured, as resident did not run first and last"
    return f"Drift from the first run of resident to the last: {text}."


def _order(row: Row) -> tuple[bool, bool, int, str]:
    label, name = row["label"], name_of(row["label"])
    place = ORDER.index(name) if name in ORDER else len(ORDER)
    return label != FIRST, label != LAST, place, label


def engine_cell(label: str) -> Cell:
    """A label with its engine's colour; a peer is called one."""
    peer = name_of(label) in PEERS
    return Cell(label, text=label + (" (peer)" if peer else ""), engine=engine_of(label))


def _cells(report: Campaign, row: Row) -> dict[str, object]:
    step, top = step_ms(row), own_limit(report, row)
    over = [ratio(report, row, label) for label in (FIRST, LAST)]
    peer: Kind | None = "derived" if name_of(row["label"]) in PEERS else None
    cells: dict[str, object] = {
        "tokens": row["tokens"],
        "engine": engine_cell(row["label"]),
        "step": step_cell(row),
        "moved": bytes_cell(moved(report, row), peer),
        "peak": bytes_cell(peak(row, "allocated")),
        "pinned": bytes_cell(pinned_bytes(row)),
        "bits": tick(identical(report, row)),
        "note": Cell("", text=note(row)),
    }
    if over[0] is not None:
        text = ", ".join(EM_DASH if each is None else f"{each:.3f}" for each in over)
        cells["over"] = Cell(over[0], text=f"{text} ×", kind="derived")
    if step.median is not None and top:
        text = f"{step.median / top:.3f} × of {significant(top, 4)} ms"
        cells["limit"] = Cell(step.median / top, text=text, kind="derived")
    return cells


def step_cell(row: Row) -> Cell | None:
    """A row's step with its interval and n."""
    step = step_ms(row)
    return None if step.median is None else Cell(step.median, text=step.text("ms"))


def bytes_cell(value: float | None, kind: Kind | None = None) -> Cell | None:
    """Bytes in GB."""
    return None if value is None else Cell(value, text=gigabytes(value), kind=kind)


def percent_cell(value: float | None, claim: str = "") -> Cell | None:
    """A difference, and below it what the samples say of it."""
    if value is None:
        return None
    return Cell(value, text=percent(value, 2, signed=True), kind="derived", note=claim)


# Predicted against measured ----------------------------------------------------------------------


@dataclass(frozen=True)
class Foretold:
    """A plan and what came of it.

    ``error`` is the prediction over the measured step, less 1. ``best`` is the fastest row with
    fixed settings of `stream` that fit the plan's room, in the same campaign and at the same shape;
    ``behind`` is the plan's step over that row's, less 1.
    """

    report: Campaign
    row: Row
    predicted_ms: float
    error: float
    best: Row | None
    behind: float | None


def foretold(found: Sequence[Found]) -> list[Foretold]:
    """Return the cells where a plan was made and its choice measured."""
    cells = []
    for _, report in found:
        blocks = report["settings"]["blocks"]
        for row in report["rows"]:
            mine = step_ms(row).median
            plan = row["ranks"][0]["plan"] if row["ranks"] else None
            if plan is None or mine is None:
                continue
            predicted = 1e3 * plan["candidates"][plan["chosen"]]["predicted"]["step_s"]
            fixed = [
                (other, step.median)
                for other in _streams(report, row["tokens"])
                if StreamSettings(**other["settings"]).buffers(blocks) <= plan["room"]
                and (step := step_ms(other)).median is not None
            ]
            best, its = min(fixed, key=lambda pair: pair[1], default=(None, None))
            cells.append(
                Foretold(report, row, predicted, predicted / mine - 1, best, its and mine / its - 1)
            )
    return cells


def _streams(report: Campaign, tokens: int) -> list[Row]:
    """The measured rows of a shape with fixed settings of `stream`."""
    rows = [row for row in report["rows"] if row["tokens"] == tokens and row["ranks"]]
    return [row for row in rows if name_of(row["label"]) == "stream" and step_ms(row).n]


def foretold_sentence(found: Sequence[Found]) -> str:
    """Return how good plans are, as Markdown; NotAnswerable where none was measured."""
    cells = foretold(found)
    if not cells:
        raise NotAnswerable("No campaign on a GPU has a row of planned.")
    worst = max(cells, key=lambda cell: abs(cell.error))
    text = (
        f"Over {counted(len(cells), 'cell')} the prediction is off by "
        f"{percent(median(abs(cell.error) for cell in cells), 2)} in the median and by "
        f"{percent(abs(worst.error), 2)} at worst ({markdown(_place(worst))})."
    )
    rivals = [cell for cell in cells if cell.behind is not None]
    if not rivals:
        return f"{text} No fixed setting of `stream` was measured beside a plan in its room."
    slow = max(rivals, key=lambda cell: cell.behind or 0.0)
    if (slow.behind or 0.0) <= 0:
        return f"{text} In none of {len(rivals)} was the plan slower than the best fixed setting."
    slower = [cell for cell in rivals if (cell.behind or 0.0) > 0]
    return (
        f"{text} In {len(slower)} of {len(rivals)} the plan was slower than the best fixed setting "
        f"beside it, at most by {percent(slow.behind, 2)} ({markdown(_place(slow))})."
    )


def _place(cell: Foretold) -> str:
    return f"{words(cell.report)}, {cell.row['tokens']:,} tokens"


def foretold_tables(found: Sequence[Found]) -> list[str]:
    """Return each plan's predicted and measured step, and the best fixed setting's, as HTML."""
    columns = [
        Column("tokens", "tokens"),
        Column("chosen", "plan took", numeric=False),
        Column("predicted", "predicted"),
        Column("measured", "measured", "median [95 % interval], n"),
        Column("error", "prediction", "over measured"),
        Column("behind", "plan", "over the best fixed"),
        Column("best", "best fixed", "setting beside it", numeric=False),
    ]
    return [
        html_table(
            [_foretold(cell) for cell in cells],
            columns,
            caption=f"Plans, predicted against measured: {words(report)} ({path.stem})",
            note="A fixed setting counts if its buffers fit the room that the plan had.",
        )
        for path, report in found
        if (cells := foretold([(path, report)]))
    ]


def _foretold(cell: Foretold) -> dict[str, object]:
    text = f"{significant(cell.predicted_ms, 4)} ms"
    return {
        "tokens": cell.row["tokens"],
        "chosen": describe(cell.row["settings"]).replace(" ", NBSP),
        "predicted": Cell(cell.predicted_ms, kind="predicted", text=text),
        "measured": step_cell(cell.row),
        "error": percent_cell(cell.error),
        "best": cell.best and engine_cell(cell.best["label"]),
        "behind": percent_cell(cell.behind, claim(cell.row, cell.best)),
    }


def claim(one: Row, two: Row | None) -> str:
    """Whether the samples of two rows support a difference."""
    a, b = step_ms(one), step_ms(two)
    if a.low is None or b.low is None:
        return "no interval"
    return "intervals apart" if apart(a, b) else "intervals overlap"


# Each setting alone ------------------------------------------------------------------------------


def ablations(report: Campaign) -> list[tuple[Row, Row, str]]:
    """Return the rows with fixed settings of `stream` that differ from a base in one setting.

    A shape's base is the row that most others differ from in one setting only; of several the one
    nearest to the defaults. What is left has a base of its own.

    Returns
    -------
    The base, the other row and the setting, of each pair.
    """
    found = []
    for tokens in shapes(report):
        left = _streams(report, tokens)
        while left:
            base, others = max(((row, _alone(row, left)) for row in left), key=_centre)
            near = [row for row in sorted(left, key=_order) if row["label"] in others]
            found += [(base, row, others[row["label"]]) for row in near]
            left = [row for row in left if row is not base and row not in near]
    return found


def _alone(base: Row, rows: Sequence[Row]) -> dict[str, str]:
    """The setting that a row does not share with ``base``, by label, where it is only one."""
    unlike = {
        row["label"]: [k for k, v in row["settings"].items() if v != base["settings"][k]]
        for row in rows
    }
    return {label: keys[0] for label, keys in unlike.items() if len(keys) == 1}


def _centre(star: tuple[Row, Mapping[str, str]]) -> tuple[int, int, str]:
    row, others = star
    usual = [row["settings"][k] == v for k, v in vars(StreamSettings()).items()]
    return len(others), sum(usual), row["label"]


def ablation_tables(found: Sequence[Found]) -> list[str]:
    """Return what each setting of `stream` changes alone, as HTML; NotAnswerable without such."""
    columns = [
        Column("what", "what changed", numeric=False),
        Column("tokens", "tokens"),
        Column("base", "base", "median [95 % interval], n"),
        Column("step", "changed", "median [95 % interval], n"),
        Column("delta", "change"),
        Column("rest", "the base", numeric=False),
    ]
    tables = [
        html_table(
            [_ablation(report, *pair) for pair in pairs],
            columns,
            caption=f"Settings of stream, each alone: {words(report)} ({path.stem})",
            note="Both rows are of this campaign and differ in this setting only.",
        )
        for path, report in found
        if (pairs := ablations(report))
    ]
    if not tables:
        what = "two rows of stream that differ in one setting only"
        raise NotAnswerable(f"No campaign on a GPU has {what}.")
    return tables


def _ablation(report: Campaign, base: Row, row: Row, key: str) -> dict[str, object]:
    over = ratio(report, row, base["label"])
    values = " → ".join(_value(one["settings"][key]) for one in (base, row))
    return {
        "what": f"{key}: {values}".replace(" ", NBSP),
        "tokens": row["tokens"],
        "base": step_cell(base),
        "step": step_cell(row),
        "delta": percent_cell(over and over - 1, claim(row, base)),
        "rest": engine_cell(base["label"]),
    }


def _value(value: Any) -> str:
    if value is None or value is False:
        return "off"
    if isinstance(value, list):
        return " + ".join(gigabytes(part, 3) for part in value)
    return "on" if value is True else str(value)
