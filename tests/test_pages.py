"""The rendered pages in a real browser: each check, and a planted page that it must catch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.browser

REPORTS = Path(__file__).resolve().parent.parent / "reports"
PAGES = sorted(REPORTS.glob("**/*.html"))
REQUIRED = os.environ.get("WANREPORT_REQUIRE_PAGES") == "1"
PHONE_WIDTHS = (360, 390)
SHOWN = 6  # problems of one kind listed a page

Check = Callable[[Any, Path], list[str]]


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """A loaded page in a context of its own (playwright's options: viewport, color_scheme…)."""
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        page.goto(path.as_uri())
        yield page
    finally:
        context.close()


def quiet_and_alone(browser: Any, path: Path) -> list[str]:
    """One self-contained file: it asks for nothing else, and the console stays empty."""
    problems: list[str] = []
    context = browser.new_context()
    try:
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and problems.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on("requestfailed", lambda r: problems.append(f"failed request: {r.url[:200]}"))

        def judge(route: Any) -> None:
            url = route.request.url
            if urlsplit(url).scheme in ("data", "blob") or url.split("#")[0] == path.as_uri():
                route.continue_()
                return
            problems.append(f"asks for another file: {url[:200]}")
            if url.startswith("file:"):
                route.continue_()
            else:
                route.abort()

        page.route("**/*", judge)
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
    finally:
        context.close()
    return problems


TOO_WIDE = """() => {
  const limit = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= limit) return [];
  const wide = [...document.body.querySelectorAll('*')].filter(element => {
    if (element.getBoundingClientRect().right <= limit + 0.5) return false;
    for (let up = element.parentElement; up && up !== document.body; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== 'visible') return false;
    return true;
  });
  return wide.length ? wide.map(e => e.outerHTML.slice(0, 120)) : ['the page itself'];
}"""


def fits_a_phone(browser: Any, path: Path) -> list[str]:
    """No horizontal scrolling, folded and unfolded."""
    problems = []
    for width in PHONE_WIDTHS:
        with opened(browser, path, viewport={"width": width, "height": 780}) as page:
            for state in ("folded", "unfolded"):
                problems += [f"{width} px, {state}: {e}" for e in page.evaluate(TOO_WIDE)[:SHOWN]]
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return problems


def headings_are_an_outline(browser: Any, path: Path) -> list[str]:
    """One h1, first; no level skipped; none empty; a title and a language."""
    with opened(browser, path) as page:
        headings = page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')]"
            ".map(h => [Number(h.tagName[1]), h.innerText.trim()])"
        )
        problems = [] if page.title().strip() else ["no title"]
        if not page.evaluate("document.documentElement.lang"):
            problems.append("no lang on <html>")
    levels = [level for level, _ in headings]
    if levels.count(1) != 1 or levels[0] != 1:
        problems.append(f"wants one h1, before all other headings: {headings[:SHOWN]}")
    problems += [f"empty h{level}" for level, text in headings if not text]
    problems += [
        f"h{level} {text!r} follows h{before}"
        for (level, text), before in zip(headings[1:], levels, strict=False)
        if level > before + 1
    ]
    return problems


PICTURES_WITHOUT_TEXT = """() => [...document.querySelectorAll('img, svg, [role=img]')]
  .filter(e => {
    if (e.closest('[aria-hidden=true]')) return false;
    if (e.tagName !== 'IMG' && e.parentElement.closest('[role=img]')) return false;
    const by = (e.getAttribute('aria-labelledby') || '').split(' ')
      .map(id => document.getElementById(id)?.textContent || '').join('');
    const title = e.tagName === 'svg' ? e.querySelector(':scope > title')?.textContent : '';
    return ![e.getAttribute('alt'), e.getAttribute('aria-label'), by, title]
      .some(text => text && text.trim());
  })
  .map(e => e.outerHTML.slice(0, 100))"""


def pictures_have_text(browser: Any, path: Path) -> list[str]:
    """Every picture has a text in its place (or is marked as decoration)."""
    with opened(browser, path) as page:
        return [f"no alt text: {e}" for e in page.evaluate(PICTURES_WITHOUT_TEXT)[:SHOWN]]


def works_without_scripts(browser: Any, path: Path) -> list[str]:
    """With JavaScript off, the same words are on the page and the headings can be seen."""
    with opened(browser, path) as page:
        with_scripts = page.inner_text("body").split()
    with opened(browser, path, java_script_enabled=False) as page:
        without = page.inner_text("body").split()
        hidden = [h.inner_text() for h in page.locator("h1, h2").all() if not h.is_visible()]
    problems = [f"heading hidden without scripts: {text!r}" for text in hidden]
    missing = set(with_scripts) - set(without)
    if len(missing) > 0.02 * len(set(with_scripts)):
        problems.append(f"words missing without scripts: {sorted(missing)[:20]}")
    if not without:
        problems.append("empty page")
    return problems


def links_resolve(browser: Any, path: Path) -> list[str]:
    """Every link inside the report leads to a file that is there, and to an anchor in it."""
    problems: list[str] = []
    anchors: dict[Path, set[str]] = {}
    for link in BeautifulSoup(path.read_text("utf-8"), "html.parser").select("a[href]"):
        url = urlsplit(str(link["href"]))
        if url.scheme in ("http", "https", "mailto"):
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        if url.scheme or not target.is_file():
            problems.append(f"leads nowhere: {link['href']}")
        elif url.fragment and target.suffix == ".html":
            if target not in anchors:
                soup = BeautifulSoup(target.read_text("utf-8"), "html.parser")
                anchors[target] = {str(tag["id"]) for tag in soup.select("[id]")}
                anchors[target] |= {str(tag["name"]) for tag in soup.select("a[name]")}
            if unquote(url.fragment) not in anchors[target]:
                problems.append(f"no such anchor: {link['href']}")
    return problems


# WCAG 2.2 contrast of every visible text against what lies behind it. A canvas turns any CSS
# colour into RGBA. Text in SVG is left out: figures carry their own background.
LOW_CONTRAST = """() => {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
  const cache = new Map();
  const rgba = css => {
    if (!cache.has(css)) {
      pen.clearRect(0, 0, 1, 1); pen.fillStyle = css; pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      cache.set(css, [r, g, b, a / 255]);
    }
    return cache.get(css);
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92
                                                             : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const scheme = getComputedStyle(document.documentElement).colorScheme;
  const canvas = dark && scheme.includes('dark') ? [18, 18, 18] : [255, 255, 255];
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e));
    return layers.reduce((under, s) => over(rgba(s.backgroundColor), under), canvas);
  };
  const problems = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest('svg, script, style, noscript, template')) continue;
    if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(e);
    let opacity = 1;
    for (let up = e; up; up = up.parentElement) opacity *= getComputedStyle(up).opacity;
    const ground = behind(e);
    const colour = rgba(style.color);
    const ink = over([...colour.slice(0, 3), colour[3] * opacity], ground);
    const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      const key = `${e.tagName.toLowerCase()}.${e.className}: ${style.color} on rgb(${ground})`;
      problems.set(key, `${ratio.toFixed(2)}:1 ${key}: "${node.data.trim().slice(0, 40)}"`);
    }
  }
  const ground = luminance(behind(document.body));
  const list = [...problems.values()];
  if (dark ? ground > 0.2 : ground < 0.5) list.push(`page background luminance ${ground}`);
  return list;
}"""


def text_is_readable_in_light_and_dark(browser: Any, path: Path) -> list[str]:
    """Contrast of at least 4.5:1 (large text 3:1), and a dark scheme that is dark."""
    problems = []
    for scheme in ("light", "dark"):
        with opened(browser, path, color_scheme=scheme) as page:
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            problems += [f"{scheme}: {p}" for p in page.evaluate(LOW_CONTRAST)[:SHOWN]]
    return problems


CHECKS: list[Check] = [
    quiet_and_alone,
    fits_a_phone,
    headings_are_an_outline,
    pictures_have_text,
    works_without_scripts,
    links_resolve,
    text_is_readable_in_light_and_dark,
]


def test_there_are_pages() -> None:
    if not PAGES and not REQUIRED:
        pytest.skip("no reports/*.html yet: make report")
    assert REPORTS / "index.html" in PAGES


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page(path: Path, check: Check, browser: Any) -> None:
    assert not check(browser, path)


# A page that passes every check, and for each check the faults that it must find.
GOOD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Good</title>
<meta name="viewport" content="width=device-width">
<style>
  :root {{ color-scheme: light dark; }}
  @media (prefers-color-scheme: dark) {{
    body {{ background: #111; color: #eee; }} a {{ color: #9cf; }}
  }}
  .wide {{ overflow-x: auto; }}
</style></head>
<body><h1>A page</h1><p>Some words, and a <a href="#end">link</a>.</p>
<div class="wide"><pre>{long}</pre></div>
<h2 id="end">The end</h2>
<img alt="a dot"
  src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">
<svg role="img" aria-label="a bar" width="9" height="9"><rect width="9" height="9"/></svg>
<!-- fault -->
</body></html>
""".format(long="x" * 300)

FAULTS = [
    (quiet_and_alone, "<img alt='x' src='https://example.invalid/x.png'>", "another file"),
    (quiet_and_alone, "<img alt='x' src='missing.png'>", "missing.png"),
    (quiet_and_alone, "<link rel='stylesheet' href='other.css'>", "other.css"),
    (quiet_and_alone, "<script>undefined_name()</script>", "undefined_name"),
    (quiet_and_alone, "<script>console.error('ouch')</script>", "ouch"),
    (fits_a_phone, "<div style='width: 500px'>wide</div>", "360 px, folded"),
    (fits_a_phone, "<div style='width: 375px'>wide</div>", "360 px, folded"),
    (fits_a_phone, f"<details><summary>s</summary>{'y' * 300}</details>", "390 px, unfolded"),
    (headings_are_an_outline, "<h1>Another</h1>", "one h1"),
    (headings_are_an_outline, "<h4>Deep</h4>", "follows h2"),
    (headings_are_an_outline, "<h3> </h3>", "empty h3"),
    (pictures_have_text, "<img src='data:,'>", "<img"),
    (pictures_have_text, "<img alt=' ' src='data:,'>", "<img"),
    (pictures_have_text, "<svg role='img'></svg>", "<svg"),
    (pictures_have_text, "<svg></svg>", "<svg"),
    (
        works_without_scripts,
        "<script>document.body.append('one two three four five six')</script>",
        "words missing",
    ),
    (
        works_without_scripts,
        "<h2 class='late' style='display: none'>Late</h2>"
        "<script>document.querySelector('.late').style.display = 'block'</script>",
        "heading hidden",
    ),
    (links_resolve, "<a href='#nowhere'>x</a>", "no such anchor"),
    (links_resolve, "<a href='missing.html'>x</a>", "leads nowhere"),
    (links_resolve, "<a href='file:///etc/hostname'>x</a>", "leads nowhere"),
    (text_is_readable_in_light_and_dark, "<p style='color: #999'>pale</p>", "light: 2.8"),
    (text_is_readable_in_light_and_dark, "<p style='opacity: 0.4'>faint</p>", "dark: "),
    (text_is_readable_in_light_and_dark, "<p style='color: #333'>dim</p>", "dark: 1."),
    (
        text_is_readable_in_light_and_dark,
        "<style>body { background: white !important; color: black !important }</style>",
        "page background",
    ),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_page_passes(check: Check, browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "good.html"
    page.write_text(GOOD)
    assert check(browser, page) == []


@pytest.mark.parametrize(("check", "fault", "message"), FAULTS)
def test_a_planted_fault_is_found(
    check: Check, fault: str, message: str, browser: Any, tmp_path: Path
) -> None:
    page = tmp_path / "bad.html"
    page.write_text(GOOD.replace("<!-- fault -->", fault))
    assert message in "\n".join(check(browser, page))


def test_every_check_has_a_planted_fault() -> None:
    assert {check for check, _, _ in FAULTS} == set(CHECKS)
