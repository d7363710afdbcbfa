# SPDX-License-Identifier: Apache-2.0
"""Determinism across every option, on data that vary: one seed is one run, however its batch is cut."""

import importlib.util

import pytest
import torch

from tests.host import options

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def choices(comfy):
    return list(options.choices())


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))


def test_every_registered_part_is_in_a_choice(choices):
    from graft.adapters import NETWORKS
    from graft.trainers.objectives import METRICS, NOISE, NOISINGS, WEIGHTS
    from graft.trainers.optimizers import OPTIMIZERS, SCHEDULES

    named = " ".join(map(str, choices)).split()
    registries = (METRICS, NETWORKS, NOISE, NOISINGS, WEIGHTS, OPTIMIZERS, SCHEDULES)
    missing = {name for registry in registries for name in registry.names()} - set(named)
    assert missing == (set() if importlib.util.find_spec("bitsandbytes") else {"adamw-8bit"})
    assert {choice.family for choice in choices} == set(options.MODELS)
    for objective, optimizer in options.OTHERS:
        assert any(
            all(getattr(choice.objective, key) == value for key, value in objective.items())
            and all(getattr(choice.optimizer, key) == value for key, value in optimizer.items())
            for choice in choices
        )


def test_one_seed_is_one_run_however_its_batch_is_cut(choices, output):
    for number, choice in enumerate(choices):
        whole = options.train(choice)
        torch.manual_seed(number)
        assert options.same(whole, options.train(choice)), str(choice)
        cut = options.train(choice, *((2, 2), (1, 4))[number % 2])
        assert options.gap(whole, cut) < 1e-6, str(choice)
