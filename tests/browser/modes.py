# SPDX-License-Identifier: Apache-2.0
"""The four pages that users have: the frontend of the host and a recent one, in the classic and the Vue renderer."""

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.host.inprocess import ROOT

RECENT = "1.58.1"
_FOLDER = ROOT / ".host" / f"frontend-{RECENT}"
_STATIC = "comfyui_frontend_package/static/"


@dataclass(frozen=True)
class Mode:
    """One frontend in one renderer."""

    name: str
    is_recent: bool
    is_vue: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """Further arguments of the host's main.py."""
        return ("--front-end-root", str(recent_frontend())) if self.is_recent else ()

    @property
    def settings(self) -> dict[str, object]:
        """The user's settings, without which a tour or a banner lies over the first page."""
        return {
            "Comfy.TutorialCompleted": True,
            "Comfy.InstalledVersion": RECENT if self.is_recent else "1.32.9",
            "Comfy.Minimap.Visible": False,
            "Comfy.VueNodes.Enabled": self.is_vue,
            "Comfy.Graph.CanvasInfo": False,
            "Comfy.Workflow.WarnBlueprintOverwrite": False,
        }


MODES = (
    Mode("host-classic", is_recent=False, is_vue=False),
    Mode("host-vue", is_recent=False, is_vue=True),
    Mode("recent-classic", is_recent=True, is_vue=False),
    Mode("recent-vue", is_recent=True, is_vue=True),
)


def chosen(names: str) -> list[Mode]:
    """The modes that ``names`` says: ``one``, ``all``, or names with commas between them.

    Raises:
        ValueError: A name is unknown.
    """
    if names in ("one", "all"):
        return list(MODES[:1] if names == "one" else MODES)
    known = {mode.name: mode for mode in MODES}
    unknown = sorted(set(names.split(",")) - set(known))
    if unknown:
        raise ValueError(f"no such mode: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def recent_frontend() -> Path:
    """The folder that the recent frontend is served from; fetched from PyPI once."""
    static = _FOLDER / _STATIC
    if not (static / "index.html").is_file():
        fetch = _FOLDER.with_suffix(".tmp")
        shutil.rmtree(fetch, ignore_errors=True)
        wanted = f"comfyui-frontend-package=={RECENT}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(fetch)]
        subprocess.run([*command, wanted], check=True, timeout=600)
        with zipfile.ZipFile(next(fetch.glob("*.whl"))) as wheel:
            wheel.extractall(fetch / "wheel")
        shutil.rmtree(_FOLDER, ignore_errors=True)
        (fetch / "wheel").rename(_FOLDER)
        shutil.rmtree(fetch, ignore_errors=True)
    return static
