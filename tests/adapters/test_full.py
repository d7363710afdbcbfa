# SPDX-License-Identifier: Apache-2.0
"""Full weights: against autograd on the weights themselves, and what is kept for the backward pass."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graft.adapters.attach import Attached
from graft.adapters.full import Full
from graft.adapters.pair import Pair

SAMPLES = {
    "linear": (2, 5, 12),
    "conv": (2, 6, 7, 9),
    "grouped": (2, 6, 5, 5),
    "circular": (2, 6, 5, 5),
    "same": (2, 6, 5, 5),
    "layer": (2, 5, 12),
    "group": (2, 6, 5, 5),
    "rms": (2, 5, 12),
    "own": (2, 5, 12),
}


class OwnNorm(nn.Module):
    """As some families have it: a scale that is not called weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x):
        return F.rms_norm(x, self.scale.shape, self.scale, 1e-6)


def base():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.linear = nn.Linear(12, 16)
    model.conv = nn.Conv2d(6, 8, (3, 2), stride=2, padding=1)
    model.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
    model.circular = nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")
    model.same = nn.Conv2d(6, 4, 3, padding="same", dilation=2)
    model.layer = nn.LayerNorm(12)
    model.group = nn.GroupNorm(3, 6)
    model.rms = nn.RMSNorm(12)
    model.own = OwnNorm()
    model.bare = nn.LayerNorm(12, elementwise_affine=False)
    return model.requires_grad_(False)


def randomize(attached):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in attached.parameters().values():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("name", SAMPLES)
def test_output_and_gradients_are_those_of_the_weight_itself(name):
    model, theirs = base(), base()
    attached = Attached(model, Full(), 0)
    randomize(attached)
    layer, oracle = attached.layers[name], theirs.get_submodule(name)
    with torch.no_grad():
        for key, of in layer.own.items():
            oracle.get_parameter(of).add_(getattr(layer, key))
    oracle.requires_grad_()
    x = torch.randn(SAMPLES[name], generator=torch.Generator().manual_seed(2))
    ours, their = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = model.get_submodule(name)(ours), oracle(their)
    assert torch.equal(out, expected)
    for y in (out, expected):
        y.sub(1).square().sum().backward()
    torch.testing.assert_close(ours.grad, their.grad, rtol=1e-5, atol=1e-5)
    assert set(layer.own.values()) == dict(oracle.named_parameters()).keys()
    for key, of in layer.own.items():
        mine, other = getattr(layer, key).grad, oracle.get_parameter(of).grad
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_what_is_trained_and_how_files_call_it():
    every = Attached(base(), Full(), 0)
    assert "bare" not in every.layers and len(every.layers) == len(SAMPLES)
    keys = {key.removeprefix("diffusion_model.") for key in every.tensors()}
    assert {"linear.diff", "linear.diff_b", "layer.diff", "layer.diff_b", "rms.diff"} <= keys
    assert "own.scale.diff" in keys and "rms.diff_b" not in keys
    plain = Attached(base(), Full(norms=False, biases=False), 0)
    assert set(plain.layers) == {"linear", "conv", "grouped", "circular", "same"}
    assert all(key.endswith(".diff") for key in plain.tensors())
    two = Attached(base(), Full("layer, own"), 0)
    assert set(two.layers) == {"layer", "own"}
    with pytest.raises(ValueError, match="matches no layer"):
        Attached(base(), Full("layer", norms=False), 0)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_small_change_is_not_lost_in_the_precision_of_the_weight(stored):
    """The sum is made in fp32 and rounded once, to the precision of the input."""
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(torch.full((3, 4), 1.0).to(stored), requires_grad=False)
    root = nn.Sequential()
    root.a = module
    layer = Attached(root, Full(), 0).layers["a"]
    x = torch.ones(2, 4)
    with torch.no_grad():
        layer.weight.fill_(2.0**-12)  # below the last place of all three around 1
    assert torch.equal(layer.sum_of("weight", x), torch.full((3, 4), 1 + 2.0**-12))
    assert layer.sum_of("weight", x.bfloat16()).dtype == torch.bfloat16


def test_what_comes_out_may_be_added_to_in_place():
    root = nn.Sequential()
    root.a, root.b = nn.Linear(4, 3), nn.Linear(4, 3)
    root.requires_grad_(False)
    attached = Attached(root, Full(), 0)
    x = torch.randn(2, 5, 4)
    y = root.a(x)
    y += root.b(x)
    y.sum().backward()
    ones = torch.full_like(attached.layers["a"].bias, 10.0)
    assert all(torch.equal(layer.bias.grad, ones) for layer in attached.layers.values())


def test_quantised_weights_are_refused():
    root = nn.Sequential()
    root.a = nn.Linear(4, 3)
    root.a.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="a: Its weight is quantised .* choose the network 'lora'"):
        Attached(root, Full(), 0)


def kept_bytes(module, x, own):
    """Bytes that the graph keeps beside parameters, each storage once, until nothing needs it."""
    found = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    return sum(found.values()), y


def test_no_sum_of_weight_and_change_is_kept_for_the_backward_pass():
    root = nn.Sequential()
    root.a, root.b = nn.Linear(64, 512), nn.Linear(512, 64)
    root.requires_grad_(False)
    attached = Attached(root, Full(), 0)
    x = torch.randn(2, 64)
    own = {p.untyped_storage().data_ptr() for p in attached.parameters().values()}
    own |= {p.untyped_storage().data_ptr() for p in root.parameters()}
    kept, y = kept_bytes(root, x, own)
    assert kept == 4 * 2 * (64 + 512)  # the two inputs, and nothing of 64 x 512
    y.sum().backward()
    assert all(bool(p.grad.any()) for p in attached.parameters().values())
    # What plain autograd keeps: of the second layer the sum as well.
    with_sums = {name: p + 0 for name, p in root.named_parameters()}
    for p in with_sums.values():
        p.requires_grad_()

    def plain(x):
        sums = {name: p * 1 for name, p in with_sums.items()}
        return F.linear(F.linear(x, sums["a.weight"], sums["a.bias"]), sums["b.weight"])

    assert kept_bytes(plain, x, own)[0] > 4 * 64 * 512


def test_checkpointing_frees_the_inputs_of_the_layers_inside():
    torch.manual_seed(0)
    root = nn.Sequential()
    root.a, root.b = nn.Linear(8, 64), nn.Linear(64, 8)
    root.requires_grad_(False)
    attached = Attached(root, Full(), 0)
    randomize(attached)
    x = torch.randn(3, 8, requires_grad=True)
    gradients = []
    for run in (root, lambda x: checkpoint(root, x, use_reentrant=False)):
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in attached.parameters().values()])
        for p in attached.parameters().values():
            p.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    inner = []  # the graph holds the layer's input only inside of what is computed again
    forward = root.b.forward

    def watched(x):
        inner.append(weakref.ref(x))
        return forward(x)

    root.b.forward = watched
    y = checkpoint(root, x, use_reentrant=False)
    assert inner[-1]() is None and y.requires_grad


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_first_token_teaches_nothing(has_bias):
    """As the reference has it: y = m y + (1 - m) y.detach(), m = 0 at the first token."""
    torch.manual_seed(0)
    root = nn.Sequential()
    root.a = nn.Linear(6, 4, bias=has_bias)
    root.requires_grad_(False)
    oracle = copy.deepcopy(root.a).requires_grad_()
    layer = Attached(root, Full(detach_first=True), 0).layers["a"]
    x = torch.randn(2, 5, 6)
    target = torch.randn(2, 5, 4)
    y = oracle(x)
    m = torch.ones_like(y)
    m[:, :1] = 0
    masked = m * y + (1 - m) * y.detach()
    out = root.a(x)
    assert torch.equal(out, masked)
    for value in (out, masked):
        (value - target).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, oracle.weight.grad)
    if has_bias:
        torch.testing.assert_close(layer.bias.grad, oracle.bias.grad)
    layer.weight.grad = None
    only_first = torch.zeros_like(target)
    only_first[:, :1] = 1.0
    (root.a(x) * only_first).sum().backward()
    assert not bool(layer.weight.grad.any())


def test_it_begins_with_the_change_of_a_lora_to_the_bit_of_fp32():
    model = base()
    attached = Attached(model, Full(norms=False), 0)
    generator = torch.Generator().manual_seed(4)
    pair = Pair(
        torch.randn(2, 6 * 6, generator=generator), torch.randn(8, 2, generator=generator), 3.0
    )
    assert attached.layers["conv"].begin(pair) is None
    expected = 1.5 * torch.einsum("or,ri->oi", pair.up.double(), pair.down.double())
    change = attached.layers["conv"].weight
    torch.testing.assert_close(change, expected.float().reshape(8, 6, 3, 2), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected a change of shape \[16, 12\], got \[8, 36\]"):
        attached.layers["linear"].begin(pair)


def test_weight_decay_pulls_towards_the_model_as_it_was():
    model = base()
    attached = Attached(model, Full("linear"), 0)
    randomize(attached)
    optimizer = torch.optim.AdamW(attached.parameters().values(), lr=0.1, weight_decay=0.5)
    before = attached.layers["linear"].change_norm()
    for p in attached.parameters().values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert attached.layers["linear"].change_norm() == pytest.approx(0.95 * before, rel=1e-6)
