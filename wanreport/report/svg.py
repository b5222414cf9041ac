"""A matplotlib figure as HTML: an inline SVG in the page's own text colour, with its caption."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from typing import TYPE_CHECKING

import matplotlib as mpl

from wanreport.report.style import INK
from wanreport.report.tables import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN: Counter[str] = Counter()  # two equal figures of one page need different ids


def figure(fig: Figure, caption: str, alt: str | None = None) -> str:
    """Return a figure with its caption as HTML.

    Raises
    ------
    ValueError
        If there is no caption.
    """
    if not caption.strip():
        raise ValueError("a figure needs a caption: a sentence that says what it shows")
    picture = inline(fig)
    _SHOWN[picture] += 1
    if (again := _SHOWN[picture]) > 1:
        picture = _marked(picture, f"n{again}-")
    return rendered("figure.html.j2", svg=picture, caption=caption, alt=alt or caption)


def inline(fig: Figure) -> str:
    """Return a figure as an SVG whose ink is the text colour around it.

    The same figure gives the same string: no date, no random ids. Ids start with a hash of the
    figure, since all figures of a page share one name space.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "wanreport", "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    out = buffer.getvalue()
    out = out[out.index("<svg") :].strip()
    # Its one style rule would apply to the whole page.
    for useless in (
        r"<metadata>.*?</metadata>",
        r'<style type="text/css">.*?</style>',
        "<!--.*?-->",
    ):
        out = re.sub(rf"\s*{useless}", "", out, flags=re.DOTALL)
    out = re.sub(r"(font: [^;'\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", out)
    out = re.sub(rf"(fill|stroke): (?:{INK}|#000000|black)(?=[;\"])", r"\1: currentColor", out)
    return _marked(out, f"f{hashlib.sha256(out.encode()).hexdigest()[:8]}-")


def _marked(svg: str, mark: str) -> str:
    """Put `mark` in front of every id."""
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{mark}', svg)
    return re.sub(r"url\(#", f"url(#{mark}", svg)
