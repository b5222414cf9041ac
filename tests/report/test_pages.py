"""The rendered pages in a real browser: what is looked for, and a planted fault of each kind."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.browser

REPORTS = Path(__file__).resolve().parents[2] / "reports"
PAGES = sorted(path for path in REPORTS.rglob("*.html") if "published" not in path.parts)
REQUIRED = os.environ.get("WANREPORT_REQUIRE_PAGES") == "1"
SHOWN = 6  # problems of one kind listed a page

DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 780}

LOOKS = Path(__file__).with_name("looks.js").read_text("utf-8")
JUDGED = {"axe": set(), "dark": set(), "light": set()}
"""What is known to be good from pages so far: kinds of elements; their colours in each theme."""


def structure(page, path):
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


def problems_of(page, path):
    """All that is wrong with a page, in one visit: printed, on a phone and a desk, by axe."""
    problems = []

    def look(**looks):
        found = page.evaluate(f"Promise.all([{', '.join(looks.values())}])")
        for where, each in zip(looks, found, strict=True):
            problems.extend(f"{where}: {one}" for one in each[:SHOWN])

    listeners = {
        "console": lambda m: m.type == "error" and problems.append(f"console: {m.text}"),
        "pageerror": lambda error: problems.append(f"script error: {error}"),
        "request": lambda request: problems.append(f"asks for {request.url[:120]}")
        if request.url != path.as_uri() and not request.url.startswith("data:") else None,
    }  # fmt: skip
    page.evaluate("document.body?.remove()")  # else the last page is laid out in the new size
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size(PHONE)
    for event, listener in listeners.items():
        page.on(event, listener)
    fresh = {}
    page.goto(path.as_uri())
    look(unprinted="printed()")
    page.emulate_media(media="screen")
    look(folded="wide()", first_picture="cut()", unfolded="(unfold(), wide())", dark="bright()")
    fresh["axe"] = {*page.evaluate("kinds()")} - JUDGED["axe"]
    fresh["dark"] = page.evaluate("known => mark(known)", [*JUDGED["dark"]])
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(DESK)
    look(clipped="clipped()", desk="wide()")
    problems += structure(page, path)
    fresh["light"] = page.evaluate("known => mark(known)", [*JUDGED["light"]])
    if any(fresh.values()):
        from axe_playwright_python.base import AXE_SCRIPT

        page.evaluate(AXE_SCRIPT)  # only now: most pages do not need it, and it takes long to load
    for what in filter(fresh.get, fresh):
        before = len(problems)
        page.set_viewport_size(PHONE)
        if what == "axe":
            look(axe="(thin(), axed())")
        else:
            page.emulate_media(color_scheme=what)
            look(**{what: "contrast()"})
        if len(problems) == before:
            JUDGED[what].update(fresh[what])
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return problems


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for all pages, in a minimized window: pages are laid out there and never painted."""
    context = browser.new_context(no_viewport=True)  # with one, playwright opens the window again
    context.add_init_script(script=LOOKS)
    page = context.new_page()
    session = context.new_cdp_session(page)
    window = session.send("Browser.getWindowForTarget")["windowId"]
    minimized = {"windowId": window, "bounds": {"windowState": "minimized"}}
    session.send("Browser.setWindowBounds", minimized)
    session.detach()  # on navigation its media and size would win over playwright's
    return page


def test_all_pages_are_small_enough_to_send_and_have_titles_of_their_own():
    if not PAGES and not REQUIRED:
        pytest.skip("no reports/*.html yet: make report")
    assert REPORTS / "index.html" in PAGES
    assert {str(path) for path in PAGES if path.stat().st_size > 800_000} == set()
    titles = [path.read_text("utf-8").split("<title>")[1].split("</title>")[0] for path in PAGES]
    assert sorted(set(titles)) == sorted(titles)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_page(path, tab):
    assert not problems_of(tab, path)


# A page without a fault, and faults that must be found.
GOOD = Path(__file__).with_name("good.html").read_text("utf-8").replace("LONG", "x" * 300)
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


@pytest.mark.parametrize("faults", [{}, *FAULTS])
def test_planted_faults_are_found_and_a_good_page_passes(faults, tab, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(GOOD.replace("<!-- fault -->", "".join(faults)))
    found = problems_of(tab, page)
    assert bool(found) == bool(faults)
    assert {message for message in faults.values() if message not in "\n".join(found)} == set()
