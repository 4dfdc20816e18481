"""Chromium, Firefox and axe-core, for tests of pages."""

import gc
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FIREFOX = next((path for name in ("firefox-esr", "firefox") if (path := shutil.which(name))), None)
FIREFOX_SETTINGS = {
    "ui.prefersReducedMotion": 1,
    "dom.max_script_run_time": 0,  # a busy machine is slow, and a stopped script looks like an error of the page
    "dom.events.testing.asyncClipboard": True,  # the clipboard without a question to the user
}
RUN_AXE = """async () => {
    const { violations } = await axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
}"""

SCROLLED_TABLES = """() => [...document.querySelectorAll(".wide")]
    .filter((part) => part.scrollWidth > part.clientWidth).map((part) => part.getAttribute("aria-label"))"""
TABLE_ROLES = ("table", "row", "columnheader", "rowheader", "cell")


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def open_firefox(log: Path) -> Iterator[Any]:
    """A headless Firefox with its own protocol, Marionette; the test is skipped where there is none.

    log: its output.  Files that a page saves come into the same folder.

    Playwright needs a Firefox of its own.
    """
    if FIREFOX is None:
        pytest.skip("no Firefox on this machine: apt-get install firefox-esr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that package: of an import, and of sockets that it does not close
        reason = "marionette_driver is not installed: pip install marionette-driver"
        api = pytest.importorskip("marionette_driver.marionette", reason=reason)
        settings = FIREFOX_SETTINGS | {"browser.download.folderList": 2, "browser.download.dir": str(log.parent)}
        firefox = api.Marionette(bin=FIREFOX, headless=True, port=0, prefs=settings, gecko_log=str(log))
        firefox.start_session()
    try:
        yield firefox
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            firefox.cleanup()
            gc.collect()


@contextmanager
def opened(browser: Any, path: Path, **context: Any) -> Iterator[Any]:
    """Open a page.  Afterwards: no error, no violation of its content security policy, no request but for the page."""
    tab = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | context))
    page = tab.new_page()
    page.set_default_timeout(15_000)
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: request.url.startswith(("data:", "blob:")) or requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    tab.close()
    assert errors == [] and requests == [path.as_uri()]


def scrolled_tables(page: Any) -> list[str]:
    """The names of the tables that are wider than the page."""
    return page.evaluate(SCROLLED_TABLES)


def table_parts(page: Any) -> list[int]:
    """How many tables, rows, titles and cells a screen reader finds."""
    return [page.get_by_role(role).count() for role in TABLE_ROLES]


def axe_violations(page: Any) -> list[str]:
    """What axe-core objects to on a page, with the elements; the test is skipped without axe-core."""
    package = find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("axe-core is not installed: pip install axe-playwright-python")
    page.evaluate((Path(package.origin).parent / "axe.min.js").read_text("utf-8"))
    return page.evaluate(RUN_AXE)
