"""The site that `make docs` has built, in a real browser: `make test-site`.

A page is opened as readers do, over HTTP, wide and as narrow as a phone.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
WIDE, NARROW = 1280, 400


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A window of the width that the test asks for; a test fails with what its page complained of."""
    width = getattr(request, "param", WIDE)
    complaints: list[str] = []
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("requestfailed", lambda failed: complaints.append(f"failed: {failed.url}"))
    opened.on("response", lambda r: complaints.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    opened.on("request", lambda r: None if "//127.0.0.1:" in r.url else complaints.append(f"from elsewhere: {r.url}"))
    yield opened
    opened.close()
    # A browser asks for an icon, whether or not a page has one.
    assert not [said for said in complaints if "data:" not in said and "favicon" not in said and "404 (" not in said]


at_both_widths = pytest.mark.parametrize("page", [WIDE, NARROW], indirect=True)


def test_there_is_a_site() -> None:
    assert "index.html" in PAGES, "run make docs"


@at_both_widths
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(name: str, page: Page, address: str) -> None:
    page.goto(f"{address}/{name}")
    assert name == "search.html" or page.locator("article h1").first.is_visible()
    # A table or a line of code that is too wide scrolls by itself.
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("[...document.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().height)") == []


@at_both_widths
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off(name: str, page: Page, address: str) -> None:
    """What is wider than its box has a box that scrolls."""
    page.goto(f"{address}/{name}")
    cut = """[...document.querySelectorAll('article td, article th, article p, article li, article dt, article pre')]
        .filter(e => e.scrollWidth > e.clientWidth + 2 && !e.closest('.table-wrapper, pre, .highlight, div.math'))
        .map(e => e.textContent.slice(0, 60))"""
    assert page.evaluate(cut) == []


def test_every_link_leads_to_a_place(page: Page, address: str) -> None:
    places: dict[str, set[str]] = {}
    links: dict[str, set[str]] = {}
    for name in PAGES:
        page.goto(f"{address}/{name}")
        places[name] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")) | {""}
        links[name] = set(page.evaluate("[...document.querySelectorAll('article a[href]')].map(e => e.href)"))
    for name, found in links.items():
        for link in found:
            target, anchor = urldefrag(link.removeprefix(f"{address}/"))
            if "://" not in target and target in places:
                assert unquote(anchor) in places[target], (name, link)
            elif "://" not in target:
                assert (SITE / target).exists(), (name, link)


def test_search_finds(page: Page, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.locator("input[name=q]").first.fill("stochastic")
    page.keyboard.press("Enter")
    page.locator("#search-results li a", has_text="Precision").first.wait_for(timeout=10_000)


@pytest.mark.parametrize("page", [NARROW], indirect=True)
def test_a_phone_has_a_menu(page: Page, address: str) -> None:
    page.goto(f"{address}/index.html")
    link = page.locator(".sidebar-tree a", has_text="Memory").first
    assert link.bounding_box()["x"] < 0
    page.locator(".mobile-header .nav-overlay-icon").first.click()
    page.wait_for_function("document.querySelector('.sidebar-drawer').getBoundingClientRect().x === 0")
    link.click()
    assert page.locator("h1").first.inner_text().startswith("Memory")
