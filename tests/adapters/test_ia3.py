# SPDX-License-Identifier: Apache-2.0
"""(IA)^3 against PEFT's layers, on outputs and inputs."""

import peft
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.ia3 import IA3

from .test_lora import INPUTS, base, randomize


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("on_input", [False, True])
def test_output_and_gradients_equal_peft(name, on_input):
    model, theirs = base(), base()
    attached = Attached(model, IA3(name, on_input=name if on_input else ""), 0)
    randomize(attached)
    config = peft.IA3Config(target_modules=[name], feedforward_modules=[name] if on_input else [])
    wrapped = peft.get_peft_model(nn.ModuleDict(dict(theirs.named_children())), config)
    oracle, layer = wrapped.base_model.model[name], attached.layers[name]
    scale = oracle.ia3_l["default"]
    with torch.no_grad():
        scale.copy_(1 + layer.change.reshape(scale.shape))
    x = torch.randn(INPUTS[name])
    out, expected = model.get_submodule(name)(x), oracle(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(
        layer.change.grad.reshape(scale.shape), scale.grad, rtol=1e-4, atol=1e-5
    )


def test_patterns_choose_whose_inputs_are_scaled():
    layers = Attached(base(), IA3("all", on_input="conv; point"), 0).layers
    assert {name: layer.change.numel() for name, layer in layers.items()} == {
        "linear": 20,
        "conv": 5,
        "point": 5,
    }
    with pytest.raises(ValueError, match="on_input 'cnov' matches no layer.*Did you mean conv"):
        Attached(base(), IA3("all", on_input="cnov"), 0)
