"""Looks that mean the same everywhere: a colour and a marker for each engine, one theme.

The colours keep a contrast of 3:1 on white and on near-black, and stay apart for colour-blind
readers, but they are never the only cue: a label or a marker says the same. Text needs
more contrast than a colour can have on both grounds, so it is always drawn in :data:`INK`.
"""

import hashlib
import io
import re
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "template"
LOOK = mpl.rc_params_from_file(TEMPLATE / "figures.mplstyle", use_default_template=False)
INK: str = LOOK["text.color"]
"""The colour of text and axes; on a page it becomes the text colour around the figure."""
FALLBACK = "#77706b"  # the colour of an engine that is not listed
ENGINES = {
    "resident": "#8d929c",  # the reference, so no hue
    "swap": "#7a620b",
    "fsdp": "#3f845f",
    "layerwise": "#ca8124",
    "stream": "#4295e7",
    "sglang": "#8739db",  # from here on peers
    "diffusers": "#b23179",
}
MARKERS = dict(zip(ENGINES, "sD^ovXP", strict=True))
WIDTH = 7.6  # of a figure in inches: on a page its text then has the size it was given here
NARROW = 4.9  # of a page's first figure, which a phone shows whole with text that can be read
_SHOWN: Counter[str] = Counter()  # two equal figures of one page need different ids


def colour(engine: str) -> str:
    """Return an engine's colour; the fallback for one that is not listed."""
    return ENGINES.get(engine, FALLBACK)


def theme() -> None:
    """Draw in the look of all pages from now on."""
    sns.set_theme(style="ticks", rc=LOOK)


def inline(figure: Figure) -> str:
    """Return a figure as an SVG whose ink is the text colour around it.

    The same figure gives the same string: no date, no random ids. All figures of a page share one
    name space, so ids start with a hash of the figure and how often it was shown.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "wanreport", "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.set_dpi(72)  # SVG's own; savefig would draw it a second time
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = "<svg" + buffer.getvalue().partition("<svg")[2].rstrip().replace("xlink:href", "href")
    # A style would be for the whole page, and nothing refers to a group.
    svg = re.sub('(?s)<style .*?</style>|(?<=<g) id="[^"]*"', "", svg)
    # A hundredth of a point is enough.
    svg = re.sub("<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    # The page's own font, not one that a reader may lack; no idle turns, indents, and short lines.
    idle = r"(?<=\n) +| \n(?=[CLMQz])|(?<=\n[CLMQ]) | transform=\"rotate\(-0 [^\"]*\""
    svg = re.sub(rf"{idle}|font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(rf"(fill|stroke): (?:{INK}|#000000|black)(?=[;\"])", r"\1: currentColor", svg)
    svg = re.sub(r'(?<= style=")[^"]*', lambda style: re.sub(r"([:;]) ", r"\1", style[0]), svg)
    while len(svg) > len(svg := re.sub(r"(?s)<g>\n((?:(?!</?g\b).)*)</g>\n", r"\1", svg)):
        pass  # a group that says nothing
    _SHOWN[svg] += 1
    mark = f"f{hashlib.sha256(svg.encode()).hexdigest()[:6]}-{_SHOWN[svg]}-"
    ids = {name: f"{mark}{n}" for n, name in enumerate(re.findall(r'\bid="([^"]*)', svg))}
    return re.sub(r'(\bid="|href="#|url\(#)([^")]*)', lambda it: it[1] + ids.get(it[2], it[2]), svg)
