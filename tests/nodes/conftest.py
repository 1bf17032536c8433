"""Shared by the tests in a browser: one Chromium, because Playwright's sync API can be started once in a thread."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium (Debian's, or a Chrome); skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def open_page(browser):
    """open_page(server, width, height, timeout) -> a page of that server's frontend, cut off from everything else.

    What goes wrong in the page's scripts is in `page.errors`. timeout: milliseconds.
    """

    def open_(server, width: int, height: int, timeout: int):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(timeout)
        page.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
        page.goto(server.address)
        return page

    return open_
