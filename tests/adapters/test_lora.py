# SPDX-License-Identifier: Apache-2.0
"""LoRA against PEFT's layers and against its own definition."""

import peft
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA


def base():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.linear = nn.Linear(12, 20)
    model.conv = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    model.point = nn.Conv2d(5, 7, 1)
    return model.requires_grad_(False)


INPUTS = {"linear": (4, 3, 12), "conv": (2, 5, 9, 8), "point": (2, 5, 9, 8)}


def randomize(attached, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in attached.parameters().values():
            p.copy_(torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("rank,alpha", [(4, 0.0), (4, 1.0), (3, 6.0)])
def test_output_and_gradients_equal_peft(name, rank, alpha):
    ours, theirs = base(), base()
    attached = Attached(ours, LoRA(rank=rank, alpha=alpha, blocks="all"), 0)
    randomize(attached)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=[name])
    wrapped = peft.get_peft_model(nn.ModuleDict(dict(theirs.named_children())), config)
    oracle = wrapped.base_model.model[name]
    layer = attached.layers[name]
    with torch.no_grad():
        oracle.lora_A["default"].weight.copy_(layer.down)
        oracle.lora_B["default"].weight.copy_(layer.up)
    x = torch.randn(INPUTS[name])
    out, expected = ours.get_submodule(name)(x), oracle(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(
        layer.down.grad, oracle.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        layer.up.grad, oracle.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-3
    )


def test_no_effect_at_the_start_and_after_removal():
    model = base()
    inputs = {name: torch.randn(shape) for name, shape in INPUTS.items()}
    before = {name: model.get_submodule(name)(x) for name, x in inputs.items()}
    attached = Attached(model, LoRA(rank=2, blocks="all"), 0)
    for name, x in inputs.items():
        assert torch.equal(model.get_submodule(name)(x), before[name])
    randomize(attached)
    with attached.off():
        for name, x in inputs.items():
            assert torch.equal(model.get_submodule(name)(x), before[name])
    assert not torch.equal(model.linear(inputs["linear"]), before["linear"])
    attached.remove()
    for name, x in inputs.items():
        assert torch.equal(model.get_submodule(name)(x), before[name])
        assert "forward" not in model.get_submodule(name).__dict__


def test_initialization_is_seeded_by_name_and_bounded():
    """down ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)): kaiming_uniform(a=sqrt(5)), as kohya and PEFT."""
    first, second = (Attached(base(), LoRA(rank=64, blocks="all"), 7) for _ in range(2))
    other = Attached(base(), LoRA(rank=64, blocks="all"), 8)
    alone = Attached(base(), LoRA(rank=64, blocks="conv"), 7)
    down = first.layers["conv"].down
    assert torch.equal(down, second.layers["conv"].down)
    assert torch.equal(down, alone.layers["conv"].down)
    assert not torch.equal(down, other.layers["conv"].down)
    bound = (5 * 9) ** -0.5
    assert float(down.detach().abs().max()) <= bound
    assert float(down.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_tensors_round_trip_and_are_copies():
    attached = Attached(base(), LoRA(rank=3, alpha=6.0, blocks="all"), 0)
    randomize(attached)
    saved = attached.tensors()
    assert saved["diffusion_model.conv.lora_down.weight"].shape == (3, 5, 3, 3)
    assert saved["diffusion_model.conv.lora_up.weight"].shape == (7, 3, 1, 1)
    assert float(saved["diffusion_model.linear.alpha"]) == 6.0
    other = Attached(base(), LoRA(rank=3, alpha=6.0, blocks="all"), 5)
    other.load(saved)
    assert all(torch.equal(value, other.tensors()[key]) for key, value in saved.items())
    randomize(attached, seed=2)
    assert not torch.equal(
        saved["diffusion_model.linear.lora_up.weight"], attached.layers["linear"].up
    )


def test_bf16_input_keeps_fp32_parameters_and_gradients():
    model = base().to(torch.bfloat16)
    attached = Attached(model, LoRA(rank=2, blocks="all"), 0)
    randomize(attached)
    out = model.linear(torch.randn(3, 12, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    layer = attached.layers["linear"]
    assert layer.down.grad.dtype == torch.float32
    assert torch.isfinite(layer.down.grad).all()


def test_a_second_network_on_the_same_model_is_refused():
    model = base()
    Attached(model, LoRA(blocks="all"), 0)
    with pytest.raises(RuntimeError, match="attached"):
        Attached(model, LoRA(blocks="all"), 0)


def test_grouped_convolution_is_named():
    model = nn.Sequential()
    model.grouped = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="grouped: .*2 groups"):
        Attached(model, LoRA(blocks="all"), 0)


@pytest.mark.parametrize("values", [{"rank": 0}, {"rank": -3}, {"alpha": -1.0}])
def test_settings_out_of_range_are_named(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        LoRA(**values)
