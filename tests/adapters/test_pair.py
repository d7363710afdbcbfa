# SPDX-License-Identifier: Apache-2.0
"""Beginning with a LoRA of any rank, against torch.linalg.svd of the dense product and numbers by hand."""

import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.base import Layer
from graft.adapters.lora import LoRA
from graft.adapters.pair import Pair, nearest

MODULES = {
    "linear": nn.Linear(33, 17),
    "conv": nn.Conv2d(6, 9, 3, padding=1),
    "point": nn.Conv2d(6, 9, 1),
    "long": nn.Conv1d(4, 7, 5),
}


def pair_for(module, rank=6, alpha=2.5, seed=0):
    weight = module.weight.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, weight.shape[1], generator=generator)
    up = torch.randn(weight.shape[0], rank, generator=generator)
    return Pair(down, up, alpha)


def dense(pair):
    return pair.alpha / pair.down.shape[0] * pair.up.double() @ pair.down.double()


def change(layer):
    """dW as the layer's own tensors define it, in fp64."""
    tensors = {key: t.detach().double() for key, t in layer.tensors().items()}
    up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
    return float(tensors["alpha"]) / len(down) * up @ down


def layer_for(module, rank, alpha=0.0, seed=9):
    return LoRA(rank=rank, alpha=alpha).build(module, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_of_equal_rank_it_is_taken_over_as_it_is(name, alpha):
    pair = pair_for(MODULES[name], rank=6, alpha=2.5)
    layer = layer_for(MODULES[name], 6, alpha)
    assert layer.begin(pair) is None
    assert torch.equal(layer.up.flatten(1), pair.up)
    assert torch.equal(layer.down.flatten(1), pair.down)
    assert float(layer.tensors()["alpha"]) == 2.5
    torch.testing.assert_close(change(layer), dense(pair), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_of_a_lower_rank_it_is_the_best_there_is(name, rank):
    """Eckart and Young: the error is the root of the sum of the other squared singular values, and no less is had."""
    pair = pair_for(MODULES[name])
    layer = layer_for(MODULES[name], rank, alpha=3.0)
    kept = layer.begin(pair)
    u, s, vh = torch.linalg.svd(dense(pair), full_matrices=False)
    best = u[:, :rank] * s[:rank] @ vh[:rank]
    torch.testing.assert_close(change(layer), best, rtol=0, atol=2e-6 * float(s[0]))
    error = float((change(layer) - dense(pair)).norm())
    assert error == pytest.approx(float(s[rank:].square().sum().sqrt()), rel=1e-6)
    assert kept.share == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), rel=1e-9)
    assert kept.rank == 6
    assert float(layer.tensors()["alpha"]) == 3.0


@pytest.mark.parametrize("name", MODULES)
def test_of_a_higher_rank_nothing_is_lost_and_all_of_it_can_learn(name):
    pair, rank = pair_for(MODULES[name], rank=3), 8
    layer = layer_for(MODULES[name], rank)
    drawn = layer.down.detach().clone()
    kept = layer.begin(pair)
    assert kept.share == pytest.approx(1.0, abs=1e-12)
    assert float((change(layer) - dense(pair)).norm() / dense(pair).norm()) < 1e-6
    assert torch.equal(
        layer.down[3:], drawn[3:]
    )  # a row of zeros with a column of zeros would never learn
    x = torch.randn(2, *{"linear": (33,), "long": (4, 9)}.get(name, (6, 5, 5)))
    layer(x, MODULES[name](x).detach()).square().sum().backward()
    moved = layer.up.grad.flatten(1).norm(dim=0) + layer.down.grad.flatten(1).norm(dim=1)
    assert bool((moved > 0).all())


def test_the_kept_energy_by_hand():
    """dW = diag(3, 4) has singular values 4 and 3: rank 1 keeps 16 of 25, and is diag(0, 4)."""
    pair = Pair(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])), 2.0)
    down, up, kept = nearest(pair, 1, 0.5)
    assert (kept.energy, kept.whole, kept.rank) == pytest.approx((16, 25, 2))
    torch.testing.assert_close(0.5 * up @ down, torch.diag(torch.tensor([0.0, 4.0]).double()))
    assert float(up.norm()) == pytest.approx(float(down.norm()))


def test_a_negative_or_odd_scale_is_part_of_the_change():
    pair = Pair(torch.ones(1, 2), torch.ones(2, 1), -0.25)
    layer = layer_for(nn.Linear(2, 2), 2)
    layer.begin(pair)
    torch.testing.assert_close(change(layer), torch.full((2, 2), -0.25).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rank", [4, 8])
def test_what_was_not_trained_begins_fresh(rank):
    pair = Pair(torch.zeros(4, 33), torch.zeros(17, 4), 4.0)
    assert pair.is_nothing
    layer, fresh = layer_for(MODULES["linear"], rank), layer_for(MODULES["linear"], rank)
    layer.begin(pair)
    assert torch.equal(layer.down, fresh.down) and not bool(layer.up.any())
    layer.begin(
        Pair(torch.ones(4, 33), torch.ones(17, 4), 0.0)
    )  # alpha 0: the host adds nothing, too
    assert torch.equal(layer.down, fresh.down) and not bool(layer.up.any())
    assert layer.scale == 1.0


def test_beginning_is_the_same_every_time():
    pair = pair_for(MODULES["conv"])
    one, two = (layer_for(MODULES["conv"], 3) for _ in range(2))
    one.begin(pair), two.begin(pair)
    assert torch.equal(one.up, two.up) and torch.equal(one.down, two.down)


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"\[17, 33\], got \[9, 54\]"):
        layer_for(MODULES["linear"], 4).begin(pair_for(MODULES["conv"]))


def test_other_kinds_of_networks_say_that_they_cannot():
    with pytest.raises(ValueError, match="cannot begin with a LoRA"):
        Layer().begin(pair_for(MODULES["linear"]))


def test_a_state_brings_the_alphas_of_the_file_it_began_with():
    def attached():
        return Attached(
            nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), LoRA(rank=2, blocks="all"), 0
        )

    first, second = attached(), attached()
    first.layers["0"].begin(pair_for(nn.Linear(5, 4), rank=2, alpha=0.5))
    with pytest.raises(ValueError, match="alpha is 0.5 in the state"):
        attached().load(first.tensors())
    second.take_alphas(first.tensors())
    second.load(first.tensors())
    assert second.layers["0"].scale == 0.25 and second.layers["1"].scale == 1.0
    assert all(torch.equal(t, second.tensors()[key]) for key, t in first.tensors().items())
