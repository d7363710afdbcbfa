# SPDX-License-Identifier: Apache-2.0
"""Memory in use: what torch took on a device, what the process has on a CPU, None where nobody can say."""

import types

import pytest

pytestmark = pytest.mark.comfy


@pytest.fixture
def on(comfy, monkeypatch):
    """Sets the device that the host trains on, and what a module of torch says of it."""
    import comfy.model_management
    import torch

    def put(kind, **functions):
        device = types.SimpleNamespace(type=kind)
        monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: device)
        if functions:
            monkeypatch.setattr(torch, kind, types.SimpleNamespace(**functions), raising=False)

    return put


def test_what_torch_reserved_on_a_device(on):
    from graft.host.runs.usage import used_gib

    on("cuda", memory_reserved=lambda device: 3 * 2**30)
    assert used_gib() == 3.0
    on("mps", driver_allocated_memory=lambda: 2**29)
    assert used_gib() == 0.5


def test_what_the_process_has_on_a_cpu(on, monkeypatch):
    import psutil

    from graft.host.runs.usage import used_gib

    on("cpu")
    said = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(rss=5 * 2**28))
    monkeypatch.setattr(psutil, "Process", lambda: said)
    assert used_gib() == 1.25


def test_a_device_that_says_nothing_costs_nothing(on):
    from graft.host.runs.usage import used_gib

    def broken(device):
        raise RuntimeError("not there")

    on("privateuseone", nothing=None)
    assert used_gib() is None
    on("cuda", memory_reserved=broken)
    assert used_gib() is None
