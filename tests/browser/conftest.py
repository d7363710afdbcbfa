# SPDX-License-Identifier: Apache-2.0
"""Chromium, the servers and the pages of the browser tests; one of each a session and mode.

A test that takes ``comfy_page`` gets the shared page with an empty graph, and fails when the browser noted an
error or asked another server. ``new_page()`` opens a further client; ``plain_page`` is a blank page for modules.
"""

import contextlib
import json
import os

import pytest

from tests.browser.modes import chosen
from tests.browser.page import FLAGS, ComfyPage
from tests.host.server import ComfyServer
from tests.host.setup import chromium_path

# A page for arithmetic: of the server's origin, without ComfyUI.
_PLAIN = "/extensions/graft-finetune/js/dom.js"


def pytest_generate_tests(metafunc):
    if "mode" in metafunc.fixturenames:
        try:
            modes = chosen(metafunc.config.getoption("--browser"))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        metafunc.parametrize("mode", modes, ids=lambda mode: mode.name, scope="session")


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; no test of the browser runs without one."""
    path = chromium_path()
    if path is None:
        text = "there is no Chromium: install it (apt-get install chromium), or set GRAFT_CHROMIUM"
        if os.environ.get("GRAFT_CI"):
            pytest.fail(text)
        pytest.skip(text)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), headless=True)
        yield browser
        with contextlib.suppress(Exception):  # it may be gone already
            browser.close()


@pytest.fixture(scope="session")
def _servers(tmp_path_factory):
    """Servers by their further arguments; started when first asked for."""
    running = {}

    def get(arguments):
        if arguments not in running:
            base = tmp_path_factory.mktemp("browser")
            running[arguments] = ComfyServer(base, arguments=arguments)
            running[arguments].__enter__()
        return running[arguments]

    yield get
    for one in running.values():
        one.stop()


@pytest.fixture(scope="session")
def web_server(request, mode, _servers):
    """The server of a mode, with its settings; the host's own frontend is served by the other tests' server."""
    found = _servers(mode.arguments) if mode.arguments else request.getfixturevalue("server")
    settings = found.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(mode.settings), encoding="utf-8")
    return found


def _context(chromium, size=(1600, 1000)):
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]})
    context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
    return context


@pytest.fixture(scope="session")
def _shared_page(chromium, web_server, mode):
    page = ComfyPage(_context(chromium), web_server, mode).open()
    yield page
    page.close()


@pytest.fixture
def comfy_page(_shared_page):
    """The shared page, with an empty graph; checked afterwards."""
    page = _shared_page
    page.problems.clear(), page.outside.clear()
    empty = "async () => { await app.loadGraphData({nodes: [], links: [], version: 0.4}); app.canvas.ds.scale = 1; }"
    page.evaluate(empty)
    yield page
    page.check()


@pytest.fixture
def new_page(chromium, web_server, mode):
    """Opens further pages, each a client of its own; checked and closed afterwards."""
    pages = []

    def open_page(size=(1600, 1000), is_shared_with=None):
        context = is_shared_with.context if is_shared_with else _context(chromium, size)
        pages.append(ComfyPage(context, web_server, mode))
        return pages[-1].open()

    yield open_page
    try:
        for page in pages:
            page.check()
    finally:
        for page in pages:
            page.page.close() if len(page.context.pages) > 1 else page.close()


@pytest.fixture
def plain_page(chromium, web_server, mode):
    """A page of the server without ComfyUI, to call modules in; opens at once."""
    page = ComfyPage(_context(chromium), web_server, mode)
    page.page.goto(web_server.url + _PLAIN)
    yield page
    page.close()
