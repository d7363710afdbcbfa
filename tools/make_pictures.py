# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of the example workflows in a real browser, before or after a real run.

    python -m tools.make_pictures [--run] [--only "graft - train a LoRA"]

It needs Chromium and the package playwright beside the test environment; the pictures are committed.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from tests.host.inprocess import ROOT, make_folders
from tests.host.server import ComfyServer

FOLDER = ROOT / "example_workflows"
README_PICTURE = ROOT / "docs" / "graph.png"
FIRST = "graft - train a LoRA"
VIEW = {"width": 3600, "height": 1500}
WIDTH_PX = 1600
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.32.9",
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
IS_READY = "() => !!(window.app && app.graph && app.canvas && app.extensionManager)"
IS_IDLE = """async () => {
  const queue = await (await fetch('/queue')).json();
  return !queue.queue_running.length && !queue.queue_pending.length;
}"""
# Fill the view with the graph; the page's own bars are cut off afterwards.
FIT = """() => {
  const boxes = [...app.graph._nodes.map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]),
                 ...app.graph._groups.map(g => [g.pos[0], g.pos[1], g.size[0], g.size[1]])];
  const left = Math.min(...boxes.map(b => b[0])) - 40, top = Math.min(...boxes.map(b => b[1])) - 40;
  const right = Math.max(...boxes.map(b => b[0] + b[2])) + 40;
  const bottom = Math.max(...boxes.map(b => b[1] + b[3])) + 40;
  const [x, y] = [80, 120];
  const scale = Math.min((innerWidth - x) / (right - left), (innerHeight - y) / (bottom - top));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [x / scale - left, y / scale - top];
  app.canvas.setDirty(true, true);
  document.querySelectorAll('.comfyui-body-top, .comfyui-body-left, .graph-canvas-menu').forEach(e => e.remove());
  return [x, y, (right - left) * scale, (bottom - top) * scale];
}"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the workflow first")
    parser.add_argument("--only", help="stem of one workflow")
    parser.add_argument(
        "--browser", default=shutil.which("chromium") or shutil.which("google-chrome")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graft-pictures-") as base:
        settings = make_folders(Path(base)) / "user" / "default" / "comfy.settings.json"
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
        with ComfyServer(base, device="auto") as server:
            for path in sorted(FOLDER.glob("*.json")):
                if options.only in (None, path.stem):
                    take(path, server.url, options.browser, options.run)


def take(path: Path, url: str, browser: str, run: bool) -> None:
    """Take the picture of one workflow."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS, headless=True)
        context = chromium.new_context(viewport=VIEW)
        context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page = context.new_page()
        page.goto(url, wait_until="domcontentloaded", timeout=180_000)
        page.wait_for_function(IS_READY, timeout=180_000)
        page.wait_for_timeout(5_000)
        workflow = json.loads(path.read_text(encoding="utf-8"))
        page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        page.wait_for_timeout(2_000)
        if run:
            page.evaluate("() => app.queuePrompt(0, 1)")
            page.wait_for_timeout(3_000)
            while not page.evaluate(IS_IDLE):
                page.wait_for_timeout(2_000)
            page.wait_for_timeout(3_000)
        x, y, width, height = page.evaluate(FIT)
        page.wait_for_timeout(3_000)
        shot = Path(tempfile.gettempdir()) / "graft-picture.png"
        clip = {"x": x, "y": y, "width": width, "height": height}
        page.screenshot(path=shot, clip=clip)
        chromium.close()
    with Image.open(shot) as picture:
        small = picture.convert("RGB")
        small.thumbnail((WIDTH_PX, WIDTH_PX), Image.Resampling.LANCZOS)
    small.save(path.with_suffix(".jpg"), quality=85)
    print(f"wrote {path.with_suffix('.jpg').name}: {small.size[0]} x {small.size[1]} px")
    if path.stem == FIRST:
        README_PICTURE.parent.mkdir(exist_ok=True)
        small.save(README_PICTURE, optimize=True)


if __name__ == "__main__":
    main()
