# SPDX-License-Identifier: Apache-2.0
"""The in-process host: on the CPU, in its own folders; the pack does not shadow ComfyUI's names."""

import sys
from pathlib import Path

import pytest


def test_the_pack_is_importable_without_the_host():
    import graft

    assert Path(graft.__path__[0]) == Path(__file__).resolve().parents[2]


def test_the_repository_is_not_on_the_path():
    root = Path(__file__).resolve().parents[2]
    assert root not in [Path(p or ".").resolve() for p in sys.path]


@pytest.mark.comfy
def test_the_host_runs_on_the_cpu_in_its_own_folders():
    import comfy.model_management
    import folder_paths

    from tests.host import inprocess

    base = inprocess.start()
    assert comfy.model_management.get_torch_device().type == "cpu"
    for get in ("input", "output", "temp", "user"):
        folder = Path(getattr(folder_paths, f"get_{get}_directory")())
        assert folder.is_relative_to(base)
    assert str(base / "output" / "loras") in folder_paths.get_folder_paths("loras")


@pytest.mark.comfy
def test_nodes_means_the_hosts_nodes():
    import nodes

    assert hasattr(nodes, "NODE_CLASS_MAPPINGS")
