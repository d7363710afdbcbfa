# SPDX-License-Identifier: Apache-2.0
"""Takes pictures of the dataset panel, of the example drawings and of a folder with problems, in both themes.

    python -m tools.make_dataset_pictures [--mode host-classic] [--keep]

They are written to out/dataset-panel; `--keep` makes the dark one at 100 % the picture of the help pages, too.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.modes import Mode, chosen
from tests.browser.page import FLAGS, ComfyPage
from tests.host.inprocess import ROOT, make_folders
from tests.host.server import ComfyServer
from tests.host.setup import chromium_path

OUT = ROOT / "out" / "dataset-panel"
HELP_PICTURE = ROOT / "web" / "docs" / "dataset-panel.png"
EXAMPLES = ROOT / "assets" / "concepts" / "shape"
THEMES = ("dark", "light")
SIZE = {"width": 480, "height": 860}
IS_SHOWN = """() => { const images = [...document.querySelectorAll('.graft-set-cell img')];
    return images.length > 3 && images.every((one) => one.naturalWidth > 0); }"""


def main() -> None:
    """Command line."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", default="host-classic", help="of tests/browser/modes.py")
    parser.add_argument("--keep", action="store_true", help="as the picture of the help pages")
    options = parser.parse_args()
    (mode,) = chosen(options.mode)
    with tempfile.TemporaryDirectory(prefix="graft-panel-") as base:
        settings = make_folders(Path(base)) / "user" / "default" / "comfy.settings.json"
        settings.write_text(json.dumps(mode.settings), encoding="utf-8")
        make_folder(Path(base) / "input" / "my shape")
        with ComfyServer(base, arguments=mode.arguments) as server, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
            context = browser.new_context(viewport={"width": 1300, "height": 1050})
            context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
            page = ComfyPage(context, server, mode).open()
            for theme in THEMES:
                take(page, mode, theme)
            browser.close()
    if options.keep:
        shutil.copy(OUT / f"{mode.name}-dark-100.png", HELP_PICTURE)
        print(f"wrote {HELP_PICTURE.name}")


def make_folder(folder: Path) -> None:
    """The example drawings, with a copy, a long one, a small one, one without a caption and one that is none."""
    shutil.copytree(EXAMPLES, folder)
    pictures = sorted(folder.glob("*.png"))
    for ending in (".png", ".txt"):
        shutil.copy(pictures[0].with_suffix(ending), folder / f"copy{ending}")
    with Image.open(pictures[1]) as image:
        image.resize((256, 64)).save(folder / "long.png")
        image.resize((32, 32)).save(folder / "small.png")
    (folder / "long.txt").write_text("a wide drawing", encoding="utf-8")
    (folder / "damaged.png").write_bytes(pictures[2].read_bytes()[:200])


def take(page: ComfyPage, mode: Mode, theme: str) -> None:
    """Write the pictures of one theme at both zooms."""
    page.server.post("/settings/Comfy.ColorPalette", theme)
    page.reload()
    page.load(
        {
            "nodes": [],
            "links": [],
            "groups": [],
            "last_node_id": 0,
            "last_link_id": 0,
            "version": 0.4,
        }
    )
    page.evaluate(
        """([folder, size]) => {
            const node = LiteGraph.createNode("GraftLoadImages");
            app.graph.add(node);
            node.setSize([size.width, size.height]);
            const given = { folder, trigger: "dax", resolution: 64 };
            for (const [name, value] of Object.entries(given)) {
                const widget = node.widgets.find((one) => one.name === name);
                widget.value = value;
                widget.callback?.(value);
            }
        }""",
        ["my shape", SIZE],
    )
    node = page.evaluate("() => app.graph.nodes[0].id")
    for zoom in (100, 50):
        page.zoom(zoom / 100, node)
        page.page.wait_for_timeout(1500)
        page.wait(IS_SHOWN)
        name = f"{mode.name}-{theme}-{zoom}"
        page.screenshot(OUT / f"{name}.png", ".graft-set")
        page.screenshot(OUT / f"{name}-page.png")
        print(f"wrote {name}.png")


if __name__ == "__main__":
    main()
