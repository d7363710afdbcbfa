# SPDX-License-Identifier: Apache-2.0
"""One open page of ComfyUI: loads graphs, runs them, and notes whatever went wrong in the browser."""

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.browser.modes import Mode
from tests.host.inprocess import ROOT
from tests.host.server import PACK_FOLDER, ComfyServer

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
)
IS_READY = """() => !!(window.app && app.canvas && app.extensionManager && app.vueAppReady !== false
  && (app.rootGraph ?? app.graph))"""
# What ComfyUI's own page says and asks without any pack; found with --disable-all-custom-nodes.
OWN_NOISE = (
    r"TypeError: Cannot read properties of undefined \(reading 'id'\)",
    r"/user\.css",
    r"/userdata",
    r"comfy\.templates\.json",
    r"/settings/",
    r"/api/(jobs|assets|features|hub|experiment|releases)",
    r"\[Jobs API\]|JobsApiError|Failed to fetch jobs",  # a host that is older than the recent frontend
    r"https://api\.comfy\.org",
    r"missingModelMetadata",  # of the recent frontend's own first workflow, whose models nobody has
    r"favicon",
)
OUTSIDE_NOISE = (r"^https://api\.comfy\.org/",)  # blocked by the page's own policy


class ComfyPage:
    """A page of a running server.

    Args:
        context: Playwright's context: one of its own is another client.
        server: What serves the page.
        mode: Which frontend and renderer.
    """

    def __init__(self, context: Any, server: ComfyServer, mode: Mode):
        self.context, self.server, self.mode = context, server, mode
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.asked: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(90_000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self._problem(f"page error: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)
        # A page with a running export asks before it is left.
        self.page.on("dialog", lambda dialog: dialog.accept())

    def open(self) -> "ComfyPage":
        """Load ComfyUI and wait until it can be used."""
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        return self._ready()

    def reload(self) -> "ComfyPage":
        """As a user does with F5."""
        self.page.reload(wait_until="domcontentloaded")
        return self._ready()

    def _ready(self) -> "ComfyPage":
        self.page.wait_for_function(IS_READY)
        # The page puts back its last workflow after that.
        self.page.wait_for_function("() => document.querySelector('#graph-canvas, canvas')")
        self.page.wait_for_timeout(1200)
        return self

    def close(self) -> None:
        """Close the page with its context; what it noted stays."""
        self.context.close()

    # Graphs

    def load(self, workflow: dict[str, Any] | str | Path) -> dict[str, Any]:
        """Open a workflow: its JSON, a file, or the name of a template; return the JSON."""
        if isinstance(workflow, str):
            workflow = ROOT / "example_workflows" / f"{workflow}.json"
        if isinstance(workflow, Path):
            workflow = json.loads(workflow.read_text(encoding="utf-8"))
        self.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(300)
        return workflow

    def queue(self) -> None:
        """Press Run."""
        self.evaluate("() => app.queuePrompt(0, 1)")

    def set(self, node: int | str, name: str, value: Any) -> None:
        """Set a node's widget, as a user does."""
        self.evaluate(
            """([id, name, value]) => {
                const node = (app.rootGraph ?? app.graph).getNodeById(id);
                const widget = node.widgets.find((widget) => widget.name === name);
                if (!widget) throw new Error(`no widget ${name}`);
                widget.value = value;
                widget.callback?.(value);
            }""",
            [node, name, value],
        )

    def widget(self, node: int | str, name: str) -> Any:
        """The value of a node's widget."""
        return self.evaluate(
            "([id, name]) => (app.rootGraph ?? app.graph).getNodeById(id)"
            ".widgets.find((widget) => widget.name === name).value",
            [node, name],
        )

    def prompt(self) -> dict[str, Any]:
        """What the page would send to the server."""
        return self.evaluate("async () => (await app.graphToPrompt()).output")

    def serialized(self) -> dict[str, Any]:
        """What the page would save as the workflow."""
        return self.evaluate("() => (app.rootGraph ?? app.graph).serialize()")

    # The page

    def evaluate(self, code: str, value: Any = None) -> Any:
        """Run JavaScript in the page."""
        return self.page.evaluate(code, value)

    def wait(self, code: str, value: Any = None, timeout_s: float = 60) -> Any:
        """Wait until JavaScript gives something true, and return it."""
        handle = self.page.wait_for_function(code, arg=value, timeout=timeout_s * 1000, polling=100)
        return handle.json_value()

    def module(self, name: str, code: str, value: Any = None) -> Any:
        """Call ``code`` with a module of ours and a value: ``module("ema", "(m, v) => m.smoothed(v, 0.9)", [...])``."""
        url = f"/extensions/{PACK_FOLDER}/js/{name}.js"
        return self.evaluate(
            f"async ([url, value]) => ({code})(await import(url), value)", [url, value]
        )

    def wait_idle(self, timeout_s: float = 240) -> None:
        """Wait until the server has nothing to do."""
        deadline = time.monotonic() + timeout_s
        while True:
            queue = self.server.get("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"still busy after {timeout_s:g} s:\n{self.server.log_tail(30)}")
            self.page.wait_for_timeout(100)  # the page's events go on meanwhile

    def zoom(self, scale: float, node: int | str | None = None) -> None:
        """Show the graph at ``scale``, with ``node`` at the top left."""
        self.evaluate(
            """([scale, id]) => {
                const view = app.canvas.ds;
                view.scale = scale;
                const at = id === null ? [0, 0] : (app.rootGraph ?? app.graph).getNodeById(id).pos;
                view.offset = [120 / scale - at[0], 120 / scale - at[1]];
                app.canvas.setDirty(true, true);
            }""",
            [scale, node],
        )
        self.page.wait_for_timeout(700)

    def screenshot(self, path: Path, selector: str | None = None) -> Path:
        """Write what is seen, or one element of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        target = self.page.locator(selector).first if selector else self.page
        target.screenshot(path=path)
        return path

    # What went wrong

    def check(self) -> None:
        """Raise AssertionError for errors in the console, failed requests and requests to other places."""
        outside, self.outside = self.outside, []
        problems, self.problems = self.problems, []
        lines = [f"asked another server: {url}" for url in outside] + problems
        assert not lines, f"in the browser ({self.mode.name}):\n" + "\n".join(lines)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            where = (message.location or {}).get("url", "")
            self._problem(f"console: {message.text} ({where})")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self._problem(f"HTTP {response.status}: {response.url}")

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        self.asked.append(parts.path)
        if parts.scheme in ("data", "blob", "chrome-extension") or request.url == "about:blank":
            return
        if f"{parts.scheme}://{parts.netloc}" in (
            self.server.url,
            self.server.url.replace("http", "ws", 1),
        ):
            return
        if not any(re.search(pattern, request.url) for pattern in OUTSIDE_NOISE):
            self.outside.append(request.url)

    def _problem(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in OWN_NOISE):
            self.problems.append(text)
