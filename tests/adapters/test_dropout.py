# SPDX-License-Identifier: Apache-2.0
"""Dropout: what is kept, by hand and on average; the same masks however a batch is cut, recomputed or resumed."""

import math

import pytest
import torch
from torch import nn

from graft.adapters import rows
from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA
from graft.trainers.loop import Loop
from graft.trainers.objectives import Objective
from graft.trainers.optimizers import Optimizer
from graft.trainers.plan import Plan
from graft.trainers.random import Draws
from tests.trainers.toy import Toy, ToyData, ToyNetwork

RATES = ("dropout", "rank_dropout", "module_dropout")
ALL = {"dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2}


def attached(model, seed=0, **settings):
    made = Attached(model, LoRA(rank=4, blocks="all", **settings), seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters().values():
            p.copy_(torch.randn(p.shape, generator=generator))
    return made


def linear(**settings):
    model = nn.Sequential(nn.Linear(6, 5, bias=False)).requires_grad_(False)
    return model, attached(model, **settings)


@pytest.mark.parametrize("rate", RATES)
def test_at_rate_0_nothing_is_drawn_and_the_bits_are_those_of_no_dropout(rate, monkeypatch):
    model, plain = linear()
    x = torch.randn(3, 7, 6)
    expected = model(x)
    plain.remove()
    other = attached(model, **{rate: 0.0})
    monkeypatch.setattr(Draws, "rand", lambda *args: pytest.fail("something was drawn"))
    other.draw(Draws(0, 0, range(3), 3))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("rate", RATES)
def test_nothing_is_dropped_outside_of_a_step_and_in_evaluation(rate):
    model, network = linear(**{rate: 0.5})
    x = torch.randn(4, 6)
    whole = model(x)
    network.draw(Draws(0, 0, range(4), 4))
    assert not torch.equal(model(x), whole)
    with network.off():
        assert torch.equal(model(x), nn.functional.linear(x, model[0].weight))
    for layer in network.layers.values():
        layer.eval()
    assert torch.equal(model(x), whole)
    for layer in network.layers.values():
        layer.train()
    network.draw(None)
    assert torch.equal(model(x), whole)


def test_each_kind_by_hand():
    """With all base weights 0, down = up = 1 and x = 1, inner is 6 in each of the 4 ranks.

    dropout 1/2 leaves k of 4 inner values, doubled: 12 k. rank_dropout likewise, the same k at every place of a
    picture. module_dropout gives 0 or 24.
    """
    for rate, allowed in (
        ("dropout", {0.0, 12.0, 24.0, 36.0, 48.0}),
        ("rank_dropout", {0.0, 12.0, 24.0, 36.0, 48.0}),
        ("module_dropout", {0.0, 24.0}),
    ):
        model, network = linear(**{rate: 0.5})
        with torch.no_grad():
            model[0].weight.zero_()
            for p in network.parameters().values():
                p.fill_(1.0)
        network.draw(Draws(3, 1, range(64), 64))
        out = model(torch.ones(64, 9, 6))
        assert set(out.unique().tolist()) == allowed, rate
        by_place = bool((out == out[:, :1]).all())
        assert by_place == (rate != "dropout"), rate
        assert len(out[:, 0, 0].unique()) > 1, rate  # pictures differ


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_the_mean_is_that_of_no_dropout_or_as_much_less_as_layers_are_left_out(rate, shape):
    """E[mask] / (1 - p) = 1, and E[mask] = 1 - p for whole layers; 4 deviations of 4096 draws."""
    p, count = 0.3, 4096
    model, network = linear(**{rate: p})
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).expand(count, *shape)
    base = nn.functional.linear(x, model[0].weight)
    whole = (model(x) - base)[0] * (1 - p if rate == "module_dropout" else 1)
    network.draw(Draws(5, 2, range(count), count))
    with torch.no_grad():
        change = model(x) - base
    error = (change.mean(0) - whole).abs() / (change.std(0) / math.sqrt(count))
    assert float(error.detach().max()) < 4.5


def test_a_convolution_drops_ranks_at_all_places_and_inner_values_at_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False)).requires_grad_(False)
    network = attached(model, rank_dropout=0.5)
    layer = network.layers["0"]
    network.draw(Draws(0, 0, range(8), 8))
    inner = layer.inner(torch.randn(8, 3, 5, 5))
    kept = layer.dropped(inner) != 0
    assert bool((kept == kept[:, :, :1, :1]).all()) and 0 < int(kept[:, :, 0, 0].sum()) < 32
    assert torch.equal(layer.dropped(inner), inner * 2 * kept)


def test_rows_of_a_picture_lie_side_by_side_and_layers_of_one_row_have_the_first_ones():
    """Two slots with three rows each, as frames of a video: cut in two, every slot keeps its masks."""
    _, network = linear(dropout=0.5)
    masks = network.layers["0"].masks
    network.draw(Draws(1, 4, [2, 3], 4))
    both = masks.kept(6, (5,), 0.5, "inner")
    network.draw(Draws(1, 4, [3], 4))
    assert torch.equal(masks.kept(3, (5,), 0.5, "inner"), both[3:])
    network.draw(Draws(1, 4, [2, 3], 4))
    assert masks.kept(1, (5,), 0.5, "inner").shape == (1, 5)
    with rows.only([1]):
        assert torch.equal(masks.kept(3, (5,), 0.5, "inner"), both[3:])
    assert rows.seen() is None


def test_layers_steps_slots_uses_and_purposes_have_masks_of_their_own():
    def mask(draws, layer="a", purpose="inner"):
        from graft.adapters.dropout import Masks, Source

        source = Source()
        source.draws = draws
        return Masks(source, layer).kept(1, (64,), 0.5, purpose)

    first = Draws(0, 0, [0], 2)
    others = [
        mask(first, layer="b"),
        mask(first, purpose="ranks"),
        mask(first.of("prior")),
        mask(Draws(0, 1, [0], 2)),
        mask(Draws(0, 0, [1], 2)),
        mask(Draws(1, 0, [0], 2)),
    ]
    assert torch.equal(mask(first), mask(Draws(0, 0, [0], 8)))
    assert not any(torch.equal(mask(first), other) for other in others)


def run(batch=4, accumulate=1, steps=6, state=None, total=6):
    network = ToyNetwork()
    trained = Attached(network, LoRA(rank=4, blocks="all", **ALL), 3)
    plan = Plan(steps, total, batch_size=batch, accumulate=accumulate, seed=3)
    data = ToyData(preserve=0.5)
    loop = Loop(Toy("eps", network), data, trained, Objective(), Optimizer(), plan)
    if state is not None:
        loop.resume(state)
    loop.run()
    return loop


def test_every_cut_of_the_effective_batch_has_the_same_masks():
    whole = run()
    for batch, accumulate in ((2, 2), (1, 4)):
        cut = run(batch, accumulate)
        torch.testing.assert_close(cut.losses, whole.losses, rtol=1e-5, atol=0)
        for key, value in cut.network.tensors().items():
            torch.testing.assert_close(value, whole.network.tensors()[key], rtol=1e-3, atol=2e-6)


def test_three_steps_and_three_more_are_six():
    whole, head = run(), run(steps=3)
    tail = run(steps=3, state=head.state())
    assert tail.losses == whole.losses
    for key, value in whole.network.tensors().items():
        assert torch.equal(value, tail.network.tensors()[key])


def test_the_loop_leaves_no_draws_behind():
    loop = run(steps=1)
    assert not next(iter(loop.network.layers.values())).masks.is_on


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_rates_outside_of_0_to_1_are_named(rate, value):
    with pytest.raises(ValueError, match=f"{rate} is {value}; it must be between 0.0 and 0.99"):
        LoRA(**{rate: value})
