"""The engines beside their peers: what campaigns say, as tables and sentences of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from . import campaigns
from .answers import NotAnswerable, gpu_of
from .campaigns import PEERS, Campaign, Row, name_of, step_ms
from .cost import StreamSettings
from .local import commit, project_root
from .notebook import Stop
from .plan import describe
from .tables import (
    NBSP,
    Cell,
    Column,
    Kind,
    counted,
    facts_table,
    gigabytes,
    html_table,
    markdown,
    overhead,
    significant,
    tick,
)
from .verdicts import apart

APART, OVERLAP = "intervals apart", "intervals overlap"
STEP = "median [95 % interval], n"

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
            here = campaigns.find_campaigns(root / directory)
        except campaigns.CampaignError as error:
            raise Stop(str(error)) from None
        found += [(Path(directory) / path.relative_to(root / directory), one) for path, one in here]
    return sorted(found, key=lambda item: (words(item[1]), item[0]))


def words(report: Campaign) -> str:
    """What must be alike for engines to be compared: "2x NVIDIA H200, NVLink; 2 ranks, 1 branch".

    That is machine and interconnect, ranks, branches and whether segments are compiled.
    """
    asked = report["settings"]
    ranks, branches = counted(asked["ranks"], "rank"), _branches(report)
    compiled = ", compiled" if asked["compile"] else ""
    return f"{report['machine']['class']}; {ranks}, {branches}{compiled}"


def _branches(report: Campaign) -> str:
    return counted(report["settings"]["branches"], "branch", "branches")


def timed(found: Sequence[Found]) -> list[Found]:
    """Those that ran on GPUs: on a CPU no times are taken."""
    return [item for item in found if item[1]["settings"]["device"] == "cuda"]


def off(share: float) -> str:
    """The size of a difference, as :func:`overhead` writes it but without a sign."""
    return overhead(abs(share)).lstrip("+")


def order(label: str) -> tuple[int, str]:
    """Sorts labels: resident, our other engines, peers."""
    return campaigns.KNOWN.index(name_of(label)), label


def engine_cell(label: str) -> Cell:
    """A label with its engine's colour; a peer is called one."""
    peer = name_of(label) in PEERS
    return Cell(label, text=label + (" (peer)" if peer else ""), engine=campaigns.engine_of(label))


def _step_cell(row: Row, said: str = "") -> Cell | None:
    step = step_ms(row)
    return None if step.median is None else Cell(step.median, text=step.text("ms"), note=said)


def _over_cell(share: float | None, said: str = "") -> Cell | None:
    return None if share is None else Cell(share, text=overhead(share), kind="derived", note=said)


def claim(one: Row, two: Row) -> str:
    """Whether the samples of two rows support a difference."""
    a, b = step_ms(one), step_ms(two)
    if a.low is None or b.low is None:
        return "no interval"
    return APART if apart(a, b) else OVERLAP


def _table(
    item: Found, rows: Sequence[Mapping[str, object]], columns: Sequence[Column], title: str,
    note: str, kind: Kind | None = "measured",
) -> str:  # fmt: skip
    caption = f"{title}: {words(item[1])} ({item[0].stem})"
    return html_table(rows, columns, caption=caption, note=note, kind=kind)


# One campaign ------------------------------------------------------------------------------------


def conditions_table(path: Path, report: Campaign) -> str:
    """Return where, with what and how a campaign was measured, as HTML."""
    machine, software, asked = report["machine"], report["software"], report["settings"]
    gpus = f"{asked['ranks']} of {machine['gpu_count']}x {machine['gpu_name']}"
    links = [campaigns.link(report, label) for label in (campaigns.FIRST, campaigns.LAST)]
    rates = [f"{significant(rate, 3)} GB/s" for rate in links if rate]
    versions = {name: software[name] for name in ("torch", "diffusers", "python", "cuda", "nccl")}
    versions |= {name: peer["version"] for name, peer in report["peers"].items()}
    commits = {commit(row) or "unknown" for row in report["rows"]}
    return facts_table(
        [
            ("GPUs", gpus if machine["gpu_count"] else "none: a CPU, which shows bits only"),
            ("driver", machine["driver"] or "none"),
            ("transport of collectives", _transport(report)),
            ("link, pinned, all ranks at once", " first, last ".join(rates) or None),
            ("work", f"{counted(asked['blocks'], 'block')} ({gigabytes(report['bytes'])}), "
             f"{_branches(report)} a step, segments {'compiled' if asked['compile'] else 'eager'}"),
            ("versions", ", ".join(f"{key} {value or 'none'}" for key, value in versions.items())),
            ("commit", "; ".join(sorted(commits))),
            ("file", path.as_posix()),
        ],
        caption=f"How {path.stem} was measured: {words(report)}",
    )  # fmt: skip


def _transport(report: Campaign) -> str:
    """What collectives between ranks went over, in NCCL's words."""
    if report["settings"]["ranks"] == 1 or report["settings"]["device"] == "cpu":
        return "not in use"
    each = [row["transport"] for row in report["rows"] if row["ranks"]]
    return ", ".join(sorted({way for row in each for way in row})) or "its log names none"


def engines_table(path: Path, report: Campaign) -> str:
    """Return tokens × engine of a campaign, as HTML: times where it ran on GPUs, and bits."""
    cuda = report["settings"]["device"] == "cuda"
    times = [
        Column("step", "step", STEP),
        Column("over", "to resident"),
        Column("limit", "to its limit", "moving, step and rank"),
        Column("peak", "device"),
        Column("pinned", "pinned"),
        Column("gpu", "GPU under load"),
    ]
    columns = [
        Column("engine", "engine", numeric=False),
        Column("tokens", "tokens"),
        *(times if cuda else []),
        Column("bits", "bits", numeric=False),
        Column("note", "note", numeric=False),
    ]
    note = "On a CPU only bits are checked: no times are claimed, and none are kept."
    if cuda:
        note = (
            f"{_drifts(report)} An engine's limit is the larger of resident's step and of the bytes"
            " that it must move in a steady step over the link's bandwidth as resident measured it,"
            " pinned, all ranks at once: a ratio below 1 says that machine or link were faster than"
            " then. A peer's copies are not counted; each of its branches is taken to bring every"
            " block. Device is the fullest rank's allocated peak, pinned the host's memory; of the"
            " GPU that ran slowest its SM clock, power and temperature."
        )
    rows = sorted(report["rows"], key=lambda row: (row["tokens"], order(row["label"])))
    cells = [_cells(report, row) for row in rows]
    title = "Engines beside their peers"
    return _table((path, report), cells, columns, title, note, "measured" if cuda else None)


def _drifts(report: Campaign) -> str:
    """How far the machine itself drifted, from the first run of resident to the last."""
    said = [
        f"{tokens:,} tokens {overhead(by)}"
        for tokens in campaigns.shapes(report)
        if (by := campaigns.drift(report, tokens)) is not None
    ]
    before, after = (campaigns.link(report, name) for name in (campaigns.FIRST, campaigns.LAST))
    said += [f"the link {overhead(after / before - 1)}"] if before and after else []
    text = "; ".join(said) or "not known, as resident did not run both first and last"
    return f"Drift from the first run of resident to the last: {text}."


def _cells(report: Campaign, row: Row) -> dict[str, object]:
    step, top = step_ms(row).median, campaigns.limit(report, row)
    state = gpu_of([[rank.get("gpu")] for rank in row["ranks"]])
    device, pinned = campaigns.peak(row, "allocated"), campaigns.pinned_bytes(row)
    cells: dict[str, object] = {
        "tokens": row["tokens"],
        "engine": engine_cell(row["label"]),
        "step": _step_cell(row),
        "over": _over_cell(campaigns.cost(report, row)),
        "peak": None if device is None else Cell(device, text=gigabytes(device)),
        "pinned": None if pinned is None else Cell(pinned, text=gigabytes(pinned)),
        "gpu": state and Cell(state.sm_mhz, text=state.text),
        "bits": tick(campaigns.identical(report, row)),
        "note": Cell("", text=campaigns.note(row)),
    }
    if step is not None and top:
        said = f"{significant(top, 4)} ms, {gigabytes(campaigns.moved(report, row))}"
        cells["limit"] = Cell(step / top, text=f"{step / top:.3f} ×", kind="derived", note=said)
    return cells


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

    @property
    def claim(self) -> str:
        return f"{self.best['label']}: {claim(self.row, self.best)}" if self.best else ""

    @property
    def place(self) -> str:
        return markdown(f"{words(self.report)}, {self.row['tokens']:,} tokens")


def foretold(found: Sequence[Found]) -> list[Foretold]:
    """Return the cells where a plan was made and its choice measured."""
    cells = []
    for _, report in found:
        for row in report["rows"]:
            mine = step_ms(row).median
            plan = row["ranks"][0]["plan"] if row["ranks"] else None
            if plan is None or mine is None:
                continue
            predicted = 1e3 * plan["candidates"][plan["chosen"]]["predicted"]["step_s"]
            blocks, fixed = report["settings"]["blocks"], _streams(report, row["tokens"])
            fit = [
                other
                for other in fixed
                if StreamSettings(**other["settings"]).buffers(blocks) <= plan["room"]
            ]
            best = min(fit, key=lambda other: step_ms(other).median or 0.0, default=None)
            behind = campaigns.cost(report, row, best["label"]) if best else None
            cells.append(Foretold(report, row, predicted, predicted / mine - 1, best, behind))
    return cells


def _streams(report: Campaign, tokens: int) -> list[Row]:
    """The measured rows of a shape with fixed settings of `stream`, the most usual first."""

    def unusual(row: Row) -> tuple[int, str]:
        usual = vars(StreamSettings()).items()
        return sum(row["settings"][key] != value for key, value in usual), row["label"]

    here = [row for row in report["rows"] if row["tokens"] == tokens and step_ms(row).n]
    return sorted((row for row in here if name_of(row["label"]) == "stream"), key=unusual)


def foretold_sentence(found: Sequence[Found]) -> str:
    """Return how good plans are, as Markdown; NotAnswerable where none was measured."""
    cells = foretold(found)
    if not cells:
        raise NotAnswerable("No campaign on a GPU has a row of planned.")
    worst = max(cells, key=lambda cell: abs(cell.error))
    text = (
        f"Over {counted(len(cells), 'plan')} the prediction is off by "
        f"{off(median(abs(cell.error) for cell in cells))} in the median and by "
        f"{off(worst.error)} at worst ({worst.place})."
    )
    rivals = [(cell.behind, cell) for cell in cells if cell.behind is not None]
    if not rivals:
        return f"{text} No fixed setting of `stream` was measured beside a plan in its room."
    slower = [item for item in rivals if item[0] > 0]
    if not slower:
        return f"{text} In none of {len(rivals)} was the plan slower than the best fixed setting."
    most, slowest = max(slower, key=lambda item: item[0])
    sure = sum(cell.claim.endswith(APART) for _, cell in slower)
    return (
        f"{text} Beside the best fixed setting in its room the plan was slower in {len(slower)} of "
        f"{len(rivals)}, in {sure or 'none'} of them with intervals apart; at most by "
        f"{off(most)} ({slowest.place}; {markdown(slowest.claim)})."
    )


def foretold_tables(found: Sequence[Found]) -> list[str]:
    """Return each plan's predicted and measured step, and the best fixed setting's, as HTML."""
    columns = [
        Column("tokens", "tokens"),
        Column("chosen", "plan took", numeric=False),
        Column("predicted", "predicted"),
        Column("measured", "measured", STEP),
        Column("error", "prediction", "over measured"),
        Column("behind", "plan", "over the best fixed setting"),
    ]

    def row(cell: Foretold) -> dict[str, object]:
        text = f"{significant(cell.predicted_ms, 4)} ms"
        return {
            "tokens": cell.row["tokens"],
            "chosen": describe(cell.row["settings"]).replace(" ", NBSP),
            "predicted": Cell(cell.predicted_ms, kind="predicted", text=text),
            "measured": _step_cell(cell.row),
            "error": _over_cell(cell.error),
            "behind": _over_cell(cell.behind, cell.claim),
        }

    return [
        _table(item, [row(cell) for cell in cells], columns, "Plans, predicted against measured",
               "A fixed setting counts if its buffers fit the room that the plan had.")
        for item in found
        if (cells := foretold([item]))
    ]  # fmt: skip


# Each setting alone ------------------------------------------------------------------------------


def ablations(report: Campaign) -> list[tuple[Row, Row, str]]:
    """Return the pairs of rows of `stream` that differ in one setting only, and that setting.

    The base, which comes first, is the one nearer to the defaults.
    """
    found = []
    for tokens in campaigns.shapes(report):
        for base, row in combinations(_streams(report, tokens), 2):
            unlike = [k for k, v in row["settings"].items() if v != base["settings"][k]]
            found += [(base, row, unlike[0])] if len(unlike) == 1 else []
    return found


def ablation_tables(found: Sequence[Found]) -> list[str]:
    """Return what each setting of `stream` changes alone, as HTML; NotAnswerable without such."""
    columns = [
        Column("what", "what changed", numeric=False),
        Column("tokens", "tokens"),
        Column("delta", "change"),
        Column("step", "changed", STEP),
        Column("base", "base", STEP),
    ]

    def line(report: Campaign, base: Row, row: Row, key: str) -> dict[str, object]:
        values = " → ".join(_value(one["settings"][key]) for one in (base, row))
        return {
            "what": f"{key}: {values}".replace(" ", NBSP),
            "tokens": row["tokens"],
            "delta": _over_cell(campaigns.cost(report, row, base["label"]), claim(row, base)),
            "step": _step_cell(row),
            "base": _step_cell(base, base["label"]),
        }

    tables = [
        _table(item, [line(item[1], *pair) for pair in pairs], columns,
               "Settings of stream, each alone",
               "Both rows are of this campaign and differ in this setting only.")
        for item in found
        if (pairs := ablations(item[1]))
    ]  # fmt: skip
    if not tables:
        what = "two rows of stream that differ in one setting only"
        raise NotAnswerable(f"No campaign on a GPU has {what}.")
    return tables


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(gigabytes(part, 3) for part in value)
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
