# SPDX-License-Identifier: Apache-2.0
"""Takes pictures of the training panel: a real run of graft-mini, in both themes, at 100 % and 50 %, and the viewer.

    python -m tools.make_panel_pictures [--mode host-classic] [--steps 150] [--keep]

They are written to out/panel; `--keep` makes the dark one at 100 % the picture of the help pages, too.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from tests.browser import graphs
from tests.browser.graphs import PREVIEW, TRAIN
from tests.browser.modes import Mode, chosen
from tests.browser.page import FLAGS, ComfyPage
from tests.host.inprocess import ROOT, make_folders
from tests.host.server import ComfyServer
from tests.host.setup import chromium_path

OUT = ROOT / "out" / "panel"
HELP_PICTURE = ROOT / "web" / "docs" / "training-panel.png"
VIEW = {"width": 1500, "height": 1250}
THEMES = ("dark", "light")
PANEL = ".graft-panel"
IS_OVER = "() => document.querySelector('.graft-panel')?.panel.record?.state === 'done'"
HAS_PICTURES = (
    "() => [...document.querySelectorAll('.graft-thumb img')].every((one) => one.naturalWidth > 0)"
)
# The panel in the middle of the page, whatever the node's height.
CENTER = """() => {
    const { y, height } = document.querySelector('.graft-panel').getBoundingClientRect();
    app.canvas.ds.offset[1] -= (y + height / 2 - innerHeight / 2) / app.canvas.ds.scale;
    app.canvas.setDirty(true, true);
}"""


def main() -> None:
    """Command line."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", default="host-classic", help="of tests/browser/modes.py")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--keep", action="store_true", help="as the picture of the help pages")
    options = parser.parse_args()
    (mode,) = chosen(options.mode)
    with tempfile.TemporaryDirectory(prefix="graft-panel-") as base:
        settings = make_folders(Path(base)) / "user" / "default" / "comfy.settings.json"
        settings.write_text(json.dumps(mode.settings), encoding="utf-8")
        with ComfyServer(base, arguments=mode.arguments) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
            context = browser.new_context(viewport=VIEW)
            context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
            page = ComfyPage(context, server, mode).open()
            train(page, options.steps)
            for theme in THEMES:
                take(page, mode, theme)
            browser.close()
    if options.keep:
        shutil.copy(OUT / f"{mode.name}-dark-100.png", HELP_PICTURE)
        print(f"wrote {HELP_PICTURE.name}")


def train(page: ComfyPage, steps: int) -> None:
    """Run the small graph with eight previews."""
    graph = graphs.training()
    node = next(node for node in graph["nodes"] if node["id"] == TRAIN)
    node["size"] = [480, node["size"][1] + 60]
    page.load(graph)
    given = {"steps": steps, "batch_size": 2, "preserve": 0.0}
    for name, value in given.items():
        page.set(TRAIN, name, value)
    page.set(PREVIEW, "every", max(1, steps // 7))
    page.zoom(1, TRAIN)
    page.queue()
    page.wait(IS_OVER, timeout_s=1800)
    page.wait_idle()


def take(page: ComfyPage, mode: Mode, theme: str) -> None:
    """Write the pictures of one theme: both zooms, the node around the panel, the viewer."""
    page.server.post("/settings/Comfy.ColorPalette", theme)
    page.reload()
    page.wait(IS_OVER)
    for zoom in (100, 50):
        page.zoom(zoom / 100, TRAIN)
        page.evaluate(CENTER)
        page.page.wait_for_timeout(900)
        page.wait(HAS_PICTURES)
        name = f"{mode.name}-{theme}-{zoom}"
        page.screenshot(OUT / f"{name}.png", PANEL)
        page.screenshot(OUT / f"{name}-page.png")
        print(f"wrote {name}.png")
    page.zoom(1, TRAIN)
    page.evaluate(CENTER)
    page.evaluate("() => [...document.querySelectorAll('.graft-thumb')].at(-1).click()")
    page.page.wait_for_timeout(900)
    page.screenshot(OUT / f"{mode.name}-{theme}-viewer.png")
    page.page.keyboard.press("Escape")


if __name__ == "__main__":
    main()
