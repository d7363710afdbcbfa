# SPDX-License-Identifier: Apache-2.0
"""The comparison with core's trainer in small: it measures, it counts right, and the bars hold on the toy model."""

import pytest

from graft.benchmarks import bench

RESULT = {
    "about": "a toy",
    "speed": {
        "graft": {"median": 0.1, "iqr": 0.01, "steps": 6},
        "core": {"median": 0.3, "iqr": 0.02, "steps": 6},
        "ratio": 3.0,
        "ratios": [2.9, 3.1],
    },
    "memory": {
        "graft": 10 * 2**20,
        "graft checkpointed": 12 * 2**20,
        "core": 40 * 2**20,
        "ratio": 0.25,
        "checkpointed": 1.2,
    },
    "ok": {"speed": True, "memory": True, "checkpointed": False},
}


def test_a_spread_is_median_and_interquartile_range():
    assert bench._spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "iqr": 2.0, "steps": 5}
    assert bench._spread([2.0]) == {"median": 2.0, "iqr": 0.0, "steps": 1}


def test_the_table_says_what_falls_short():
    lines = bench.table({"toy": RESULT}).splitlines()
    assert any("graft / core" in line and "3.00" in line and line.endswith("ok") for line in lines)
    assert any("checkpointed / not" in line and line.endswith("SHORT") for line in lines)
    assert sum("SHORT" in line for line in lines) == 1


@pytest.mark.comfy
def test_both_trainers_are_timed_and_leave_the_host_alone():
    import comfy.model_management as mm
    from comfy_extras import nodes_train

    bar = nodes_train.ProgressBar
    result = bench.speed("tiny", 3)
    for name in ("graft", "core"):
        assert result[name]["steps"] == bench.ROUND
        assert result[name]["median"] > 0
    assert len(result["ratios"]) == 1
    assert nodes_train.ProgressBar is bar
    assert not mm.current_loaded_models


@pytest.mark.comfy
def test_both_train_every_linear_and_convolution_layer():
    """The coverage is the same: core's keys of matrices are the layers that we attach to."""
    from graft.adapters.targets import targets
    from graft.benchmarks.subjects import SUBJECTS

    for subject in SUBJECTS.values():
        config = subject.config()
        assert config.unet_config["context_dim"] > 0
    model = SUBJECTS["tiny"].model().model
    network = model.diffusion_model
    matrices = {
        name
        for name, module in network.named_modules()
        if hasattr(module, "weight_function")
        and module.weight is not None
        and module.weight.ndim > 1
    }
    assert set(targets(network, "all")) == matrices


@pytest.mark.comfy
def test_ours_takes_less_memory_in_a_fresh_process():
    ours, cores = (bench.memory("tiny", name) for name in ("graft", "core"))
    assert 0 < ours < 0.9 * cores
