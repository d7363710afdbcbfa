# SPDX-License-Identifier: Apache-2.0
"""Shared set-up: the pack as the package `graft`, and the tiers unit, comfy, server, browser, gpu and slow.

Unit tests import `graft.trainers...` and run without ComfyUI. A test marked `comfy` finds ComfyUI
importable (import it inside the test, or call `tests.host.inprocess.start()` before such an import
at module level). A test that takes the fixture `server` is marked `server` by itself, one in a
browser `browser`, too. A missing host is a failure, not a skip.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load_inprocess():
    """Load tests/host/inprocess.py under its own name before the alias packages exist."""
    name = "tests.host.inprocess"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests/host/inprocess.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


inprocess = _load_inprocess()
inprocess.alias_pack()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")
    text = "pages to test in: one, all, or names of tests/browser/modes.py with commas"
    parser.addoption("--browser", default="one", help=text)


def pytest_configure(config):
    try:
        import torch
    except ImportError as error:
        raise pytest.UsageError("torch is not installed here: run `make setup`") from error
    inprocess.SERVER_THREADS = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def _tier(item) -> int:
    if item.get_closest_marker("browser"):
        return 3  # its driver holds an event loop in this thread: nothing else may run after it
    return 2 if item.get_closest_marker("server") else 1 if item.get_closest_marker("comfy") else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if "web_server" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker("server")
        elif "server" in getattr(item, "fixturenames", ()):
            item.add_marker("server")
        elif "comfy" in getattr(item, "fixturenames", ()):
            item.add_marker("comfy")
    if not (config.option.slow or "slow" in (config.option.markexpr or "")):
        slow = [item for item in items if item.get_closest_marker("slow")]
        if slow:
            items[:] = [item for item in items if not item.get_closest_marker("slow")]
            config.hook.pytest_deselected(items=slow)
    items.sort(key=_tier)  # stable: quick tests first


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        wants_host = item.get_closest_marker("comfy")
        if wants_host and os.environ.get("GRAFT_TEST_DEVICE", "cpu") == "cpu":
            pytest.skip("the in-process host is on the CPU: set GRAFT_TEST_DEVICE=cuda")
    if item.get_closest_marker("comfy"):
        inprocess.start()


@pytest.fixture(scope="session")
def comfy():
    """Base directory of the in-process ComfyUI (a Path with input/, output/, models/, ...)."""
    return inprocess.start()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI server with the pack, shared by the session (a `ComfyServer`)."""
    from tests.host.server import ComfyServer

    with ComfyServer(tmp_path_factory.mktemp("comfy")) as running:
        yield running
