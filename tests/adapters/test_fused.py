# SPDX-License-Identifier: Apache-2.0
"""A layer and its LoRA in one function, against the two written out and finite differences; and what goes without."""

import pytest
import torch
from torch import nn

from graft.adapters import NETWORKS, fused
from graft.adapters.attach import Attached
from graft.adapters.form import Form

LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (3, 5, 12)),
    "without bias": (lambda: nn.Linear(12, 20, bias=False), (7, 12)),
    "one vector": (lambda: nn.Linear(12, 20), (12,)),
    "conv": (lambda: nn.Conv2d(6, 9, 3, padding=1), (2, 6, 7, 5)),
    "down": (lambda: nn.Conv2d(6, 9, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "wide": (lambda: nn.Conv2d(6, 9, (3, 1), dilation=2, bias=False), (2, 6, 9, 9)),
    "point": (lambda: nn.Conv2d(6, 9, 1), (2, 6, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(6, 9, 3, padding=1), (2, 6, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 5, 3, padding=1), (2, 4, 3, 5, 5)),
}


def made(name, dtype=torch.float64, rank=4):
    torch.manual_seed(3)
    build, shape = LAYERS[name]
    module = build().to(dtype).requires_grad_(False)
    form = Form.of(module, "a LoRA")
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    down = torch.randn(rank, form.inputs, *form.kernel, dtype=dtype, requires_grad=True)
    up = torch.randn(form.rows, rank, *form.ones, dtype=dtype, requires_grad=True)
    return module, form, x, down, up


def written_out(module, form, x, down, up, scale):
    inner = form.apply(x, down)
    return module(x) + scale * form.point(inner, up)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("layout", ["plain", "channels last", "transposed"])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_the_two_written_out(name, layout, scale):
    module, form, x, down, up = made(name)
    if layout == "channels last":
        if x.ndim != 4:
            pytest.skip("pictures only")
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    elif layout == "transposed":
        if x.ndim < 3:
            pytest.skip("nothing to transpose")
        x = x.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    y = fused.direct(module, form)(x, down, up, scale)
    expected = written_out(module, form, x, down, up, scale)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, down, up), grad)
    for one, other in zip(found, torch.autograd.grad(expected, (x, down, up), grad), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(256, 96), (4, 36, 256)),
        (lambda: nn.Linear(256, 96, bias=False), (4, 36, 256)),
        (lambda: nn.Linear(64, 96), (4, 6, 6, 64)),
        (lambda: nn.Linear(64, 96), (5, 64)),
        (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 12, 12)),
        (lambda: nn.Conv2d(16, 24, 1), (1, 16, 12, 12)),
    ],
)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_before_training_it_is_the_layer_bit_for_bit(build, shape, is_transposed):
    """So that what is kept near the base model (preservation) starts with a difference of 0, whose sign is 0 too."""
    torch.manual_seed(0)
    module = build().requires_grad_(False)
    form = Form.of(module, "a LoRA")
    x = torch.randn(shape)
    x = x.transpose(1, -1).contiguous().transpose(1, -1) if is_transposed else x
    down, up = torch.randn(4, form.inputs, *form.kernel), torch.zeros(form.rows, 4, *form.ones)
    assert torch.equal(fused.direct(module, form)(x, down, up, 1.0), module(x))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_finite_differences(name):
    module, form, x, down, up = made(name, rank=2)
    compute = fused.direct(module, form)
    assert torch.autograd.gradcheck(lambda *given: compute(*given, 0.5), (x, down, up))


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_an_input_without_a_gradient_gets_none_and_nothing_is_computed_for_it(name):
    module, form, x, down, up = made(name)
    y = fused.direct(module, form)(x.detach(), down, up, 1.0)
    y.sum().backward()
    assert x.grad is None and down.grad is not None and up.grad is not None
    with torch.no_grad():
        again = fused.direct(module, form)(x, down, up, 1.0)
    assert again.grad_fn is None
    torch.testing.assert_close(again, y)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_the_output_may_be_written_to(name):
    """As networks do: `h += skip`."""
    module, form, x, down, up = made(name)
    y = fused.direct(module, form)(x, down, up, 1.0)
    y += 1.0
    y.mul_(2.0)
    (found,) = torch.autograd.grad(y.sum(), up)
    expected = (written_out(module, form, x, down, up, 1.0) + 1.0) * 2.0
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), up)[0])


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_an_input_that_was_written_to_afterwards_is_refused_and_not_used(name):
    module, form, x, down, up = made(name)
    given = x * 1.0
    y = fused.direct(module, form)(given, down, up, 1.0)
    given.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_bf16_comes_out_as_near_as_the_two_written_out():
    module, form, x, down, up = made("linear", torch.bfloat16)
    y = fused.direct(module, form)(x, down.float(), up.float(), 0.5)
    assert y.dtype == torch.bfloat16
    exact = written_out(module.double(), form, x.double(), down.double(), up.double(), 0.5)
    ours = (y.double() - exact).abs().max()
    module.to(torch.bfloat16)
    theirs = (written_out(module, form, x, down, up, 0.5).double() - exact).abs().max()
    assert ours <= 2 * theirs


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Packed(nn.Linear):
    def forward(self, x):
        raise NotImplementedError("its weight is in four bits")


@pytest.mark.parametrize(
    "module",
    [
        Doubled(4, 4),
        Packed(4, 4),
        nn.Linear(4, 4, device="meta"),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
)
def test_a_layer_that_does_more_than_its_form_says_goes_by_itself(module):
    module.requires_grad_(False)
    assert fused.direct(module, Form.of(module, "a LoRA")) is None


def test_a_layer_whose_weight_is_trained_goes_by_itself():
    module = nn.Linear(4, 4)
    assert fused.direct(module, Form.of(module, "a LoRA")) is None


def test_a_weight_of_another_kind_or_with_functions_is_left_to_the_layer():
    module, form, x, down, up = made("linear", torch.float32)
    module.weight_function, module.bias_function = [], []
    compute = fused.direct(module, form)
    assert compute(x, down, up, 1.0) is not None
    assert compute(x.bfloat16(), down, up, 1.0) is None
    module.bias_function = [lambda bias: bias + 1]
    assert compute(x, down, up, 1.0) is None


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("options", [{}, {"tucker": True}, {"dropout": 0.5}, {"rslora": True}])
def test_attached_layers_compute_what_their_parts_do(name, options):
    module = made(name, torch.float32)[0]
    root = nn.ModuleDict({"layer": module})
    attached = Attached(
        root, NETWORKS.get("lora")(rank=4, alpha=3.0, blocks="all", **options), seed=1
    )
    (layer,) = attached.layers.values()
    with torch.no_grad():
        layer.up.normal_()
    x = torch.randn(LAYERS[name][1], generator=torch.Generator().manual_seed(0))
    found = module(x)
    with attached.off():
        expected = layer(x, module(x))
    torch.testing.assert_close(found, expected)
    attached.remove()
    assert "forward" not in module.__dict__


def test_fewer_tensors_are_kept_for_the_backward_than_by_the_two_written_out():
    module, form, x, down, up = made("linear", torch.float32)

    def kept(compute):
        sizes = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            compute()
        return sum(sizes.values())

    compute = fused.direct(module, form)
    ours = kept(lambda: compute(x, down, up, 0.5))
    assert ours <= kept(lambda: written_out(module, form, x, down, up, 0.5))
    weights = module.weight.numel() + down.numel() + up.numel()
    assert ours == weights + x.numel() + x.shape[:-1].numel() * 4
