"""A matplotlib figure as an inline SVG, in the page's own text colour."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from typing import TYPE_CHECKING

import matplotlib as mpl

from wanreport.report.style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN: Counter[str] = Counter()  # two equal figures of one page need different ids


def inline(figure: Figure) -> str:
    """Return a figure as an SVG whose ink is the text colour around it.

    The same figure gives the same string: no date, no random ids. All figures of a page share one
    name space, so ids start with a hash of the figure, and a number where it is shown again.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "wanreport", "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip().replace("xlink:href", "href")
    # Its one style rule would apply to the whole page.
    for useless in ("<metadata>.*?</metadata>", "<style .*?</style>", "<!--.*?-->"):
        svg = re.sub(rf"\s*{useless}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [^;'\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    svg = re.sub(rf"(fill|stroke): (?:{INK}|#000000|black)(?=[;\"])", r"\1: currentColor", svg)
    _SHOWN[svg] += 1
    again = f"n{_SHOWN[svg]}-" * (_SHOWN[svg] > 1)
    mark = f"{again}f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{mark}", svg)
