# SPDX-License-Identifier: Apache-2.0
"""Makes a real ComfyUI importable in this process, on the CPU, with temporary folders.

`start()` is idempotent. It must run before anything imports `comfy`, `folder_paths` or `nodes`.
`alias_pack()` makes the repository importable as the package `graft`, whatever the clone's folder
is called, and takes it off sys.path (`python -m` puts it there): `import nodes` means ComfyUI's.
"""

import atexit
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER_THREADS = 1  # of a server that the tests start; tests/conftest.py finds out
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user/default")

_base: Path | None = None


def alias_pack() -> types.ModuleType:
    """Return the package alias `graft`, made on the first call. `tests` becomes importable, too."""
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    for name, path in (("graft", ROOT), ("tests", ROOT / "tests")):
        module = sys.modules.get(name)
        if module is None or str(path) not in map(str, getattr(module, "__path__", ())):
            module = types.ModuleType(name)
            module.__path__ = [str(path)]
            module.__package__ = name
            sys.modules[name] = module
    return sys.modules["graft"]


def comfy_path() -> Path:
    """Return the folder of the ComfyUI under test: COMFYUI_PATH, or what `make setup` fetched.

    Raises:
        RuntimeError: there is no ComfyUI there.
    """
    given = os.environ.get("COMFYUI_PATH")
    path = Path(given).expanduser().resolve() if given else ROOT / ".host" / "ComfyUI"
    if not (path / "comfy" / "sd.py").is_file():
        where = f"COMFYUI_PATH={given}" if given else ".host/ComfyUI"
        raise RuntimeError(f"no ComfyUI in {where}: run `make setup` first (or set COMFYUI_PATH)")
    return path


def make_folders(base: Path) -> Path:
    """Create the folders that ComfyUI expects below its base directory; return ``base``."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    return base


def start(device: str | None = None) -> Path:
    """Make ComfyUI importable; return its base directory.

    Args:
        device: "cpu", or "cuda" to leave the choice to ComfyUI. The default is
            GRAFT_TEST_DEVICE, else "cpu".
    """
    global _base
    if _base is not None:
        return _base
    alias_pack()
    host = comfy_path()
    early = sorted({"comfy", "folder_paths", "nodes", "comfy_api"} & set(sys.modules))
    if early:
        raise RuntimeError(f"imported before the in-process host was started: {', '.join(early)}")
    sys.path.insert(0, str(host))
    base = make_folders(Path(tempfile.mkdtemp(prefix="graft-host-")))
    atexit.register(shutil.rmtree, base, ignore_errors=True)

    from comfy.cli_args import args

    args.cpu = (device or os.environ.get("GRAFT_TEST_DEVICE", "cpu")) == "cpu"
    args.base_directory = str(base)
    args.disable_api_nodes = True
    args.database_url = "sqlite:///:memory:"

    import folder_paths

    # What the host's main.py does before it serves: models that nodes save can be loaded again.
    output = Path(folder_paths.get_output_directory())
    for kind in ("checkpoints", "clip", "vae", "diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, str(output / kind))
    _base = base
    return base
