# SPDX-License-Identifier: Apache-2.0
"""8-bit AdamW: what it refuses, and what it asks of the library where that is installed."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from graft.trainers.optimizers import Optimizer, adamw_8bit
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.adamw_8bit import AdamW8bit
from graft.trainers.state import State
from graft.trainers.stepping import Stepper

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


def test_a_cpu_is_refused_with_a_way_out():
    with pytest.raises(
        ValueError, match=r"adamw-8bit steps on a GPU .*trains on cpu: choose adamw"
    ):
        Optimizer(AdamW8bit()).check(torch.device("cpu"))
    with pytest.raises(ValueError, match="adamw-8bit"):
        AdamW8bit().build([torch.nn.Parameter(torch.zeros(2))])


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_without_the_library_the_choice_is_named():
    with pytest.raises(ValueError, match="adamw-8bit needs the Python package bitsandbytes"):
        Optimizer(AdamW8bit()).check(torch.device("cuda"))


def test_settings_and_groups_reach_the_library(monkeypatch):
    """With a class in the library's place that takes the arguments of its documentation."""
    given = {}

    class Library:
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
            given.update(params=params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = Library
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    package.__spec__ = importlib.util.spec_from_loader("bitsandbytes", None)
    groups = [{"params": [SimpleNamespace(device=torch.device("cuda"))], "lr": 0.5}]
    AdamW8bit(0.002, 0.8, 0.95, 0.1, 1e-6).build(groups)
    wanted = {"lr": 0.002, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    assert given == {"params": groups, **wanted}


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
def test_it_follows_adamw_and_resumes_exactly(monkeypatch):
    """Within the resolution of 8 bits; a state goes through the CPU and back unchanged.

    The library's own arithmetic runs on a CPU, too, only slowly.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(adamw_8bit, "DEVICES", (device,))

    def run(kind, first, last, parameters, state=None):
        stepper = Stepper(Optimizer(kind, text_lr=0.02), parameters)
        if state:
            stepper.load(State(first, 6, 0, {}, **state))
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for p in parameters.values():
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            stepper.begin(step, 6)
            stepper.step()
        return stepper

    def fresh(values=None):
        start = values or {n: torch.zeros(64, 128, device=device) for n in ("a", "text_encoders.a")}
        return {name: torch.nn.Parameter(p.detach().clone()) for name, p in start.items()}

    whole, plain, head = fresh(), fresh(), fresh()
    run(AdamW8bit(lr=0.01), 0, 6, whole)
    run(AdamW(lr=0.01), 0, 6, plain)
    state = run(AdamW8bit(lr=0.01), 0, 3, head).state()
    tail = fresh(head)
    run(AdamW8bit(lr=0.01), 3, 6, tail, state)
    for name, p in whole.items():
        assert torch.equal(p, tail[name])
        assert 0 < float((p - plain[name]).detach().abs().mean()) < 0.002
        assert state["optimizer"][name]["state1"].dtype == torch.uint8
