"""The rendered pages in a real browser: what is looked for, and a planted fault of each kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.browser

REPORTS = Path(__file__).resolve().parents[2] / "reports"
PAGES = sorted(path for path in REPORTS.rglob("*.html") if "published" not in path.parts)
REQUIRED = os.environ.get("WANREPORT_REQUIRE_PAGES") == "1"
SHOWN = 6  # problems of one kind listed a page

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 780}

# What each look at a page asks, by name; axe itself is there too.
LOOKS = """
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
// What reaches past the window, unless a box around it scrolls.
const wide = () => {
  const limit = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= limit) return [];
  const inside = e => { for (let up = e.parentElement; up && up !== document.body;
    up = up.parentElement) if (getComputedStyle(up).overflowX !== 'visible') return true; };
  const found = all('*', document.body).filter(e =>
    e.getBoundingClientRect().right > limit + 0.5 && !inside(e));
  return found.length ? found.map(e => e.outerHTML.slice(0, 120)) : ['some text'];
};
// Boxes of tables that scroll.
const clipped = () => all('table').filter(table => {
    const box = table.parentElement;
    return table.getBoundingClientRect().right > box.getBoundingClientRect().right + 1
      || box.scrollWidth > box.clientWidth + 1; })
  .map(table => (table.caption?.innerText || table.innerText).slice(0, 80));
const cut = () => all('figure .plot').slice(0, 1)
  .filter(plot => plot.scrollWidth > plot.clientWidth).map(plot => plot.ariaLabel);
const printed = () => all('details').filter(details =>
    details.checkVisibility() && !details.lastElementChild.checkVisibility())
  .map(details => details.innerText.slice(0, 60));
const unfold = () => all('details').forEach(details => { details.open = true });
const bright = () => [document.documentElement, document.body]
  .map(e => getComputedStyle(e).backgroundColor).filter(color => /rgb\\(255/.test(color));
const outline = () => {
  const levels = all('h1,h2,h3,h4,h5,h6').map(h => Number(h.tagName[1]));
  const ids = all('[id]').map(e => e.id), named = new Set();
  return {
    headings: levels[0] === 1 && levels.filter(level => level === 1).length === 1
      && levels.every((level, n) => n === 0 || level <= levels[n - 1] + 1),
    twice: ids.filter(id => named.size === named.add(id).size),
    links: all('a[href]').map(a => a.getAttribute('href')),
    active: all('script, iframe, object, embed, form, base').length,
  };
};

// axe is slow in proportion to a page's elements. So of elements with the same colours and type,
// on all pages, one is marked in each theme; the inside of pictures, code and rows of tables like
// others go unless marked; and for the contrast, which is the slowest, all that is not marked goes.
const mark = known => {
  const seen = new Set(known), fresh = [], grounds = new Map([[null, '']]);
  const ground = e => {
    if (!grounds.has(e)) {
      const style = getComputedStyle(e);
      grounds.set(e, ground(e.parentElement) + style.backgroundColor + style.opacity);
    }
    return grounds.get(e);
  };
  for (const e of all('*', document.body)) {
    if (![...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
    const own = getComputedStyle(e);
    const look = [own.color, own.fill, own.fontSize, own.fontWeight, ground(e)].join();
    if (!seen.has(look) && e.checkVisibility()) {
      seen.add(look); fresh.push(look); e.dataset.look = '';
    }
  }
  return fresh;
};
const thin = () => {
  const kinds = new Set();
  const drop = e => e.matches('[data-look]') || e.querySelector('[data-look]') || e.remove();
  all('svg *, .highlight span').forEach(drop);
  all('tbody tr, li').forEach(e => {
    const kind = e.outerHTML.replace(/>[^<]+/g, '>x').replace(/="[^"]+"/g, '=x');
    if (kinds.has(kind)) drop(e); else kinds.add(kind);
  });
};
const prune = () => {
  const kept = new Set();
  for (let e of all('[data-look]'))
    for (; e && !kept.has(e); e = e.parentElement) kept.add(e);
  all('*', document.body).forEach(e => kept.has(e) || e.remove());
};
// Serious and critical violations of accessibility rules; rules of less are not asked.
const grave = rule => ['serious', 'critical'].includes(rule.impact);
const others = () => Object.fromEntries(axe._audit.rules
  .filter(rule => rule.id === 'color-contrast' || !grave(rule))
  .map(rule => [rule.id, { enabled: false }]));
const judge = async how => {
  const found = await axe.run({ resultTypes: ['violations'], ...how });
  return found.violations.filter(grave).flatMap(rule => rule.nodes.slice(0, 6).map(node =>
    `${rule.id}: ${node.html.slice(0, 160)} ${node.failureSummary.slice(0, 200)}`));
};
const axed = () => judge({ rules: others() });
const contrast = () => (prune(), judge({ runOnly: ['color-contrast'] }));
Object.assign(globalThis, { wide, clipped, cut, printed, unfold, bright, outline, mark, thin, axed,
  contrast });
"""
JUDGED: dict[str, set[str]] = {"dark": set(), "light": set()}
"""What contrast is known to be good: colours and type of elements, on any page so far."""


def structure(page: Any, path: Path) -> list[str]:
    """One outline of headings, ids of their own, links that lead somewhere, nothing that runs."""
    found = page.evaluate("outline()")
    problems = [] if found["headings"] else ["headings are no outline"]
    problems += [] if page.title().strip() else ["no title"]
    problems += [f"id twice: {name}" for name in found["twice"]]
    problems += ["something that runs"] * bool(found["active"])
    for href in dict.fromkeys(found["links"]):
        url = urlsplit(href)
        if url.scheme in ("http", "https", "mailto"):
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        if url.scheme or not target.is_file():
            problems.append(f"leads nowhere: {href}")
        elif url.fragment and f'id="{unquote(url.fragment)}"' not in target.read_text("utf-8"):
            problems.append(f"no such anchor: {href}")
    return problems


def problems_of(page: Any, path: Path) -> list[str]:
    """All that is wrong with a page, in one visit: printed, on a phone and a desk, by axe."""
    problems: list[str] = []

    def look(**looks: str) -> None:
        found = page.evaluate(f"Promise.all([{', '.join(looks.values())}])")
        for where, each in zip(looks, found, strict=True):
            problems.extend(f"{where}: {one}" for one in each[:SHOWN])

    listeners = {
        "console": lambda m: m.type == "error" and problems.append(f"console: {m.text}"),
        "pageerror": lambda error: problems.append(f"script error: {error}"),
        "request": lambda request: problems.append(f"asks for {request.url[:120]}")
        if request.url != path.as_uri() and not request.url.startswith("data:") else None,
    }  # fmt: skip
    for event, listener in listeners.items():
        page.on(event, listener)
    fresh = {}
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size(PHONE)
    page.goto(path.as_uri())
    look(unprinted="printed()")
    page.emulate_media(media="screen")
    look(folded="wide()", first_picture="cut()", unfolded="(unfold(), wide())", dark="bright()")
    fresh["dark"] = page.evaluate("known => mark(known)", [*JUDGED["dark"]])
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(DESK)
    look(clipped="clipped()", desk="wide()")
    problems += structure(page, path)
    fresh["light"] = page.evaluate("known => mark(known)", [*JUDGED["light"]])
    page.evaluate("thin()")
    page.set_viewport_size(PHONE)
    look(axe="axed()")
    for theme in filter(fresh.get, fresh):
        page.emulate_media(color_scheme=theme)
        before = len(problems)
        look(**{theme: "contrast()"})
        if len(problems) == before:
            JUDGED[theme].update(fresh[theme])
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return problems


@pytest.fixture(scope="module")
def tab(browser: Any) -> Any:
    """One tab for all pages."""
    from axe_playwright_python.base import AXE_SCRIPT

    context = browser.new_context()
    context.add_init_script(script=AXE_SCRIPT + LOOKS)
    return context.new_page()


def test_there_are_pages() -> None:
    if not PAGES and not REQUIRED:
        pytest.skip("no reports/*.html yet: make report")
    assert REPORTS / "index.html" in PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_page(path: Path, tab: Any) -> None:
    assert not problems_of(tab, path)


def test_no_page_is_too_large_to_send_or_to_commit() -> None:
    sizes = {path.relative_to(REPORTS).as_posix(): path.stat().st_size for path in PAGES}
    assert {name: size for name, size in sizes.items() if size > 800_000} == {}


def test_no_two_pages_have_one_title() -> None:
    titles = [path.read_text("utf-8").split("<title>")[1].split("</title>")[0] for path in PAGES]
    assert sorted(set(titles)) == sorted(titles)


# A page without a fault, and faults that must be found.
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
<body><main><h1>A page</h1><p>Some words, and a <a href="#end">link</a>.</p>
<div class="wide" tabindex="0"><pre>{long}</pre></div>
<h2 id="end">The end</h2>
<img alt="a dot"
  src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">
<!-- fault -->
</main></body></html>
""".format(long="x" * 300)

LONG = "y" * 300
FAULTS = [  # those of one page do not hide one another
    {
        "<img alt='x' src='https://example.invalid/x.png'>": "asks for https",
        "<link rel='stylesheet' href='other.css'>": "other.css",
        "<script>console.error('ouch')</script>": "ouch",
        "<div style='width: 500px'>wide</div>": "folded: <div style",
        f"<div class='wide' tabindex='0'><table><tr><td>{LONG}</td></tr></table></div>": "clipped",
        "<details><summary>s</summary><p>words</p></details>": "unprinted",
        f"<div class='wide'><pre>{LONG}</pre></div>": "scrollable-region-focusable",
        "<h1>Another</h1>": "no outline",
        "<p id='end'>x</p>": "id twice: end",
        "<img src='data:,'>": "image-alt",
        "<svg role='img'></svg>": "svg-img-alt",
        "<a href='#nowhere'>x</a>": "no such anchor: #nowhere",
        "<a href='missing.html'>x</a>": "leads nowhere: missing.html",
        "<a href='file:///etc/hostname'>x</a>": "leads nowhere: file:",
        "<p style='color: #999'>pale</p>": ">pale<",
        "<p style='color: #333'>dim</p>": ">dim<",
    },
    {
        f"<details><summary>s</summary><p>{LONG}</p></details>": "unfolded",
        "<h4>Deep</h4>": "no outline",
    },
    {
        "<style>body { background: white !important; color: black !important }</style>": "dark: rg",
        "<figure><div class='plot wide' tabindex='0' role='img' aria-label='p'><svg"
        " style='min-width: 35rem'></svg></div></figure>": "first_picture: p",
    },
]


def test_a_good_page_passes(tab: Any, tmp_path: Path) -> None:
    page = tmp_path / "good.html"
    page.write_text(GOOD)
    assert problems_of(tab, page) == []


@pytest.mark.parametrize("faults", FAULTS)
def test_planted_faults_are_found(faults: dict[str, str], tab: Any, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(GOOD.replace("<!-- fault -->", "".join(faults)))
    found = "\n".join(problems_of(tab, page))
    assert {message for message in faults.values() if message not in found} == set()
