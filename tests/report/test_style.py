"""Colours that everyone can tell apart, on both grounds, and one look for all figures."""

import re
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from wanreport.report import style
from wanreport.report.tables import TEMPLATE

# Machado, Oliveira & Fernandes (2009), severity 1.0, for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
APART = 12  # CIEDE2000; about 2 is just noticeable side by side


def linear(colour: str) -> np.ndarray:
    values = np.array(mpl.colors.to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = np.clip(rgb, 0, 1) @ XYZ.T / [0.95047, 1, 1.08883]
    fx, fy, fz = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """CIEDE2000."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1.5 - np.sqrt(chroma**7 / (chroma**7 + 25**7)) / 2
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, g * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    hue, lightness, chroma = h1 + turn / 2, (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 + sum(w * np.cos(np.radians(n * hue + p)) for w, n, p in
                ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63)))  # fmt: skip
    dl = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    around = np.exp(-(((hue % 360 - 275) / 25) ** 2))
    rt = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * np.sin(np.radians(60 * around))
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + rt * dc * dh))


def contrast(one: str, other: str) -> float:
    dark, light = sorted(linear(colour) @ XYZ[1] for colour in (one, other))
    return float((light + 0.05) / (dark + 0.05))


def grounds(name: str) -> list[str]:
    """A colour of the style sheet on the light and on the dark page."""
    found = re.findall(rf"--{name}: (#[0-9a-f]+)", Path(TEMPLATE / "page.css").read_text())[:2]
    return [mpl.colors.to_hex(colour) for colour in found]


def test_the_distance_is_ciede2000() -> None:  # pairs 1, 7 and 25 of Sharma, Wu & Dalal (2005)
    for one, other, expected in (
        ([50, 2.6772, -79.7751], [50, 0, -82.7485], 2.0425),
        ([50, 0, 0], [50, -1, 2], 2.3669),
        ([60.2574, -34.0099, 36.2677], [60.4626, -34.1751, 39.4387], 1.2644),
    ):
        assert distance(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_engines_are_told_apart_by_everyone(sight: str) -> None:
    seen = {n: lab(np.array(SIGHT[sight]) @ linear(c)) for n, c in style.ENGINES.items()}
    apart = {pair: distance(*map(seen.get, pair)) for pair in combinations(seen, 2)}  # type: ignore[arg-type]
    assert {pair: far for pair, far in apart.items() if far < APART} == {}


def test_engines_and_text_are_seen_on_both_grounds() -> None:
    drawn = [*style.ENGINES.values(), style.FALLBACK]
    low = [(paint, ground) for paint in drawn for ground in grounds("paper")
           if contrast(paint, ground) < 3]  # fmt: skip
    for name in ("ink", "muted", "accent", "keyword", "string", "number"):
        for ground in ("paper", "raised"):
            pairs = zip(grounds(name), grounds(ground), strict=True)
            low += [pair for pair in pairs if contrast(*pair) < 4.5]
    assert len(grounds("paper")) == 2 and low == []


def test_an_engine_has_a_hue_and_a_second_cue_of_its_own() -> None:
    assert np.hypot(*lab(linear(style.ENGINES["resident"]))[1:]) < 10, "it is the reference"
    assert list(style.MARKERS) == list(style.ENGINES)
    assert len(set(style.MARKERS.values())) == len(style.ENGINES)
    assert style.colour("another") == style.FALLBACK


def svg(colour: str = style.INK) -> str:
    with mpl.rc_context():
        style.theme()
        made = Figure(figsize=(4, 2))
        axes = made.add_subplot()
        axes.plot([1, 2, 3], [1, 3, 2], color=colour, clip_on=True)
        axes.set_title("a <title> & more")
        return style.inline(made)


def test_ids_never_meet_even_if_figures_are_equal() -> None:
    texts = [svg(colour) for colour in ("#0072b2", "#d55e00", "#d55e00")]
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in texts]
    every = sum(ids, [])
    assert every and len(every) == len(set(every))
    for text, own in zip(texts, ids, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert used and used <= set(own)


def test_a_figure_has_the_pages_ink_and_brings_nothing_else() -> None:
    text = svg("#0072b2")
    assert not {style.INK, "#000000"} & set(re.findall("#[0-9a-f]{6}", text))
    assert "currentColor" in text and "#0072b2" in text and text.startswith("<svg")
    for unwanted in ("<style", "<metadata", "<!--", "DOCTYPE", "#ffffff"):
        assert unwanted not in text
    assert "a &lt;title&gt; &amp; more" in text  # text stays text
