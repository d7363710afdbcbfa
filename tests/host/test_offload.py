# SPDX-License-Identifier: Apache-2.0
"""Weights of blocks on the CPU: the same bits as fully loaded, a block's weights at a time, and nothing left behind."""

import pytest
import torch

from graft.host.trainee import trainee
from tests.host import test_engine, tiny
from tests.host.test_trainee import assert_same_state, flags, loaded, lora, state, train

pytestmark = pytest.mark.comfy
wires, output = test_engine.wires, test_engine.output  # fixtures
FAMILIES = ["sd15", "sdxl", "sd3", "flux"]


def assert_equal(a, b):
    assert a[0] == b[0]
    for x, y in zip(a[1], b[1], strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_loaded_model(family, precision):
    """A LoRA of the wire is part of the weights; afterwards the host is as it was."""
    patcher, _ = lora(tiny.model(family), family)
    with torch.inference_mode():
        before = tiny.sample(patcher, family)
        mark, kept = state(patcher), flags()
        with trainee(patcher, precision=precision) as t:
            whole = train(family, t)
        with trainee(patcher, precision=precision, offload="on") as t:
            assert t.offloaded is not None and t.checkpointed == len(t.blocks) > 0
            apart = train(family, t)
            assert t.patcher.model.model_loaded_weight_memory < 0.5 * t.patcher.model_size()
        assert_equal(whole, apart)
        assert_same_state(mark, state(patcher))
        assert flags() == kept
        assert patcher in loaded() and t.patcher not in loaded()
        assert torch.equal(tiny.sample(patcher, family), before)
    assert not any(hasattr(m, "prev_comfy_cast_weights") for m in patcher.model.modules())
