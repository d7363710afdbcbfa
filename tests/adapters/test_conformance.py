# SPDX-License-Identifier: Apache-2.0
"""What every registered network keeps to.

Those of weights on a linear layer and on convolutions with a kernel, a stride, a padding; those of blocks on a
transformer block and a residual block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graft.adapters import NETWORKS, positions
from graft.adapters.attach import Attached
from graft.adapters.form import Form
from graft.trainers.random import Draws
from tests.adapters import blocks


@dataclass(frozen=True)
class Family:
    """What a network is tried on.

    Attributes:
        base: Makes a model, frozen.
        inputs: Shapes by the module that gets them.
        has_weight: Whether an adapted module is one with another weight.
        unfit: What is said of a grouped convolution, alone.
    """

    base: Callable[[], nn.Module]
    inputs: dict
    has_weight: bool
    unfit: str


def weights_base():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.linear = nn.Linear(12, 16)
    model.conv = nn.Conv2d(6, 8, (3, 2), stride=2, padding=1)
    model.point = nn.Conv2d(6, 8, 1, bias=False)
    model.long = nn.Conv1d(6, 8, 3, padding=2, dilation=2)
    return model.requires_grad_(False)


INPUTS = {"linear": (4, 3, 12), "conv": (4, 6, 7, 9), "point": (4, 6, 5, 5), "long": (4, 6, 11)}
WEIGHTS = Family(weights_base, INPUTS, True, r"grouped: .*2 groups .*leave it out")
BLOCKS = Family(blocks.base, blocks.INPUTS, False, "has no transformer block")
FAMILIES = {"bottleneck": BLOCKS}  # of weights where not said
EVERY_POSITION = "; ".join("-".join(pair) for pair in positions.PAIRS)
# Each network as it is, and where it has an option that takes another path.
VARIANTS = {
    "lora": [{}, {"tucker": True}, {"rslora": True, "conv_rank": 3}, {"init": "pissa"}],
    "loha": [{}, {"rank": 2}],  # rank 2: as a LoRA of rank 4
    "lokr": [{}, {"rank": 1, "alpha": 3.0}, {"factor": 2}],
    "oft": [{}, {"constraint": 0.5}],
    "boft": [{}, {"constraint": 0.5, "factors": 1, "rank": 8}],
    "ia3": [{}, {"on_input": "linear, conv, point, long"}],
    "bottleneck": [
        {"positions": "attn2o-ffni; resi-reso", "activation": "silu"},
        {"positions": EVERY_POSITION, "activation": "sigmoid", "scale": 0.5},
    ],
    "full": [{}, {"biases": False}],
}


def family(name):
    return FAMILIES.get(name, WEIGHTS)


CASES = [
    pytest.param(name, variant, module, id=f"{name}-{number}-{module}")
    for name in NETWORKS.names()
    for number, variant in enumerate(VARIANTS.get(name, [{}]))
    for module in family(name).inputs
]
OF_WEIGHTS = [case for case in CASES if family(case.values[0]).has_weight]


def base(name):
    return family(name).base()


def attach(model, name, variant, seed=0, **more):
    settings = {"rank": 4, "blocks": "all", **variant, **more}
    known = NETWORKS.get(name).__dataclass_fields__
    return Attached(
        model, NETWORKS.get(name)(**{k: v for k, v in settings.items() if k in known}), seed
    )


def randomize(layer, seed=1):
    """Values of the size that training leaves, so that no part is lost beside another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))


def sample(name, module, seed=2, dtype=torch.float32):
    return torch.randn(
        family(name).inputs[module], generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def weights(layer, module, x):
    """The weight that a hooked linear map has, found by basis vectors, and its bias: ``[out, in, *kernel]``."""
    if isinstance(module, nn.Linear):
        zero = module(torch.zeros(1, module.in_features))
        return (module(torch.eye(module.in_features)) - zero).T, zero[0]
    kernel = module.kernel_size
    single = type(module)(
        module.in_channels, module.out_channels, kernel, bias=module.bias is not None
    )
    single.load_state_dict(module.state_dict())
    plain = module.stride, module.padding, module.dilation
    module.stride, module.padding, module.dilation = single.stride, single.padding, single.dilation
    how = getattr(layer, "form", None) or Form.of(module, "a test")
    inner = getattr(layer, "inner", None)
    object.__setattr__(how, "how", ((1,) * len(kernel), (0,) * len(kernel), (1,) * len(kernel)))
    if hasattr(inner, "how"):
        object.__setattr__(inner, "how", how.how)
    size = module.in_channels * how.area
    zero = module(torch.zeros(1, module.in_channels, *kernel)).flatten()
    columns = module(torch.eye(size).reshape(size, module.in_channels, *kernel)).flatten(1) - zero
    module.stride, module.padding, module.dilation = plain
    return columns.T.reshape(module.weight.shape), zero


@pytest.mark.parametrize("name,variant,module", CASES)
def test_nothing_is_changed_at_the_start_or_when_off_or_after_removal(name, variant, module):
    model, x = base(name), sample(name, module)
    before = model.get_submodule(module)(x)
    network = attach(model, name, variant)
    layer = network.layers[module]
    assert torch.equal(model.get_submodule(module)(x), before)
    assert layer.change_norm() == (0.0 if family(name).has_weight else None)
    randomize(layer)
    assert not torch.allclose(model.get_submodule(module)(x), before, atol=1e-3)
    with network.off():
        assert torch.equal(model.get_submodule(module)(x), before)
    network.remove()
    assert torch.equal(model.get_submodule(module)(x), before)


@pytest.mark.parametrize("name,variant,module", CASES)
def test_what_is_saved_is_loaded_exactly_under_another_seed(name, variant, module):
    first, second = base(name), base(name)
    one, two = attach(first, name, variant), attach(second, name, variant, seed=9)
    for layer in one.layers.values():
        randomize(layer)
    saved = one.tensors()
    two.load(saved)
    assert saved.keys() == two.tensors().keys()
    assert all(torch.equal(value, two.tensors()[key]) for key, value in saved.items())
    x = sample(name, module)
    assert torch.equal(first.get_submodule(module)(x), second.get_submodule(module)(x))
    key = next(k for k in saved if k.startswith(f"diffusion_model.{module}") and saved[k].ndim)
    with pytest.raises(ValueError, match=f"{module}: .*expected shape"):
        two.load({**saved, key: torch.zeros(1, 1, 77)})


@pytest.mark.parametrize("name,variant,module", CASES)
def test_only_what_is_declared_moves_and_all_of_it_does(name, variant, module):
    model, x = base(name), sample(name, module)
    frozen = {key: value.clone() for key, value in model.state_dict().items()}
    layer = attach(model, name, variant).layers[module]
    before = {key: p.detach().clone() for key, p in layer.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        model.get_submodule(module)(x).sub(1).square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())
        assert step or any(bool(p.grad.any()) for p in layer.parameters())
        optimizer.step()
    for key, parameter in layer.named_parameters():
        assert not torch.equal(parameter, before[key]), key
    assert all(torch.equal(value, frozen[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name,variant,module", OF_WEIGHTS)
def test_the_hooked_layer_is_one_with_another_weight_whose_norm_it_knows(name, variant, module):
    model = base(name)
    target = model.get_submodule(module)
    layer = attach(model, name, variant).layers[module]
    randomize(layer)
    x = sample(name, module)
    with torch.no_grad():
        out = target(x)
        norm = layer.change_norm()
        how = () if module == "linear" else (target.stride, target.padding, target.dilation)
        weight, bias = weights(layer, target, x)
    apply = F.linear if module == "linear" else getattr(F, f"conv{x.ndim - 2}d")
    torch.testing.assert_close(out, apply(x, weight, bias, *how), rtol=1e-4, atol=1e-4)
    assert norm == pytest.approx(float((weight - target.weight).norm()), rel=1e-4)


@pytest.mark.parametrize("name,variant,module", CASES)
def test_the_gradient_is_that_of_the_output(name, variant, module):
    model = base(name).double()
    layer = attach(model, name, variant).layers[module]
    randomize(layer)
    if not layer.has_exact_gradient:
        pytest.skip(f"a part of {name} counts as a number; its own test has the oracle")
    layer.double()
    x = sample(name, module, dtype=torch.float64)[:1]
    parameters = list(layer.parameters())

    def out(*values):
        return model.get_submodule(module)(values[0])

    assert torch.autograd.gradcheck(out, (x.requires_grad_(), *parameters), fast_mode=True)


@pytest.mark.parametrize("name,variant,module", CASES)
def test_a_batch_may_be_cut(name, variant, module):
    model, x = base(name), sample(name, module)
    network = attach(model, name, variant, module_dropout=0.5)
    layer = network.layers[module]
    randomize(layer)
    found = []
    for size in (4, 2, 1):
        layer.zero_grad()
        for start in range(0, 4, size):
            slots = range(start, start + size)
            network.draw(Draws(3, 5, slots, 4))
            model.get_submodule(module)(x[start : start + size]).sub(1).square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    network.draw(Draws(3, 5, range(4), 4))
    dropped = model.get_submodule(module)(x)
    network.draw(None)
    whole = model.get_submodule(module)(x)
    with network.off():
        plain = model.get_submodule(module)(x)
    kept = [torch.allclose(a, b, 1e-5, 1e-6) for a, b in zip(dropped, whole, strict=True)]
    left = [bool(torch.equal(a, b)) for a, b in zip(dropped, plain, strict=True)]
    assert [a or b for a, b in zip(kept, left, strict=True)] == [True] * 4 and any(left)


@pytest.mark.parametrize("name,variant,module", CASES)
def test_bf16_goes_in_and_out_and_the_masters_stay_fp32(name, variant, module):
    model = base(name)
    layer = attach(model, name, variant).layers[module]
    randomize(layer)
    x = sample(name, module)
    expected = model.get_submodule(module)(x)
    model.to(torch.bfloat16)
    out = model.get_submodule(module)(x.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert float((out.float() - expected).detach().norm() / expected.detach().norm()) < 0.02
    out.float().sub(1).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("name", NETWORKS.names())
def test_equal_seeds_give_equal_layers_and_settings_tell_networks_apart(name):
    one, two = attach(base(name), name, {}, seed=3), attach(base(name), name, {}, seed=3)
    assert all(torch.equal(value, two.tensors()[key]) for key, value in one.tensors().items())
    settings = NETWORKS.get(name)
    assert repr(settings(module_dropout=0.25)) != repr(settings())
    assert "dropout" not in repr(settings())


@pytest.mark.parametrize("name", [name for name in NETWORKS.names() if name != "full"])
def test_what_no_adapter_fits_is_named(name):
    model = nn.Sequential()
    model.grouped = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match=family(name).unfit):
        attach(model, name, {})
