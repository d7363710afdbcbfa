# SPDX-License-Identifier: Apache-2.0
"""Every mode against PEFT's own ``add_weighted_adapter`` and ``merge_utils``, on linear layers and convolutions."""

import pytest
import torch
from torch import nn

from graft.adapters.pair import Pair
from graft.loaders.merging import MODES
from graft.loaders.merging.base import dense
from graft.loaders.merging.tasks import by_chance, disjoint_mean, largest, weighted

OURS = tuple(name for name in MODES.names() if name != "sum")
WEIGHTS = [0.7, -1.3, 0.4]
RANKS, ALPHAS = (4, 4, 4), (4.0, 2.0, 7.0)
LAYERS = ("linear", "conv", "pointwise")
DENSITY = 0.6


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 9)
        self.conv = nn.Conv2d(5, 7, 3, padding=1)
        self.pointwise = nn.Conv2d(5, 8, 1)

    def forward(self, x):
        return x


def peft_model(ranks=RANKS, is_partial=False):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = None
    for number, (rank, alpha) in enumerate(zip(ranks, ALPHAS, strict=True)):
        own = LAYERS[number:] if is_partial else LAYERS
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(own))
        if model is None:
            model = peft.get_peft_model(Model(), config, adapter_name="0")
        else:
            model.add_adapter(str(number), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))
    return model


def layer_of(model, name):
    return getattr(model.base_model.model, name)


def pairs_of(layer, adapters):
    return [
        Pair(
            layer.lora_A[a].weight.detach().flatten(1),
            layer.lora_B[a].weight.detach().flatten(1),
            layer.scaling[a] * layer.lora_A[a].weight.shape[0],
        )
        for a in adapters
        if a in layer.lora_A
    ]


def seeded(function, seed):
    def call(*args, **kwargs):
        torch.manual_seed(seed)
        return function(*args, **kwargs)

    return call


def merged_by_peft(model, mode, monkeypatch, seed=5, **more):
    """PEFT draws from the global generator, after it has drawn the new adapter: seeded before every layer."""
    base = model.base_model
    for name in (
        "_generalized_task_arithmetic_weighted_adapter",
        "_svd_generalized_task_arithmetic_weighted_adapter",
    ):
        monkeypatch.setattr(base, name, seeded(getattr(base, name), seed))
    base.add_weighted_adapter(
        ["0", "1", "2"], WEIGHTS, "merged", mode.replace("-", "_"), density=DENSITY, **more
    )
    return model


def ours(mode, layer, adapters="012", seed=5, **more):
    chosen = [(a, w) for a, w in zip(adapters, WEIGHTS, strict=True) if a in layer.lora_A]
    settings = MODES.parse(mode, density=DENSITY, **more)
    generator = torch.Generator().manual_seed(seed)
    return settings.merge(pairs_of(layer, adapters), [weight for _, weight in chosen], generator)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", OURS)
def test_it_is_what_peft_makes(mode, name, monkeypatch):
    if "dare" in mode and mode.endswith("svd") and name == "conv":
        pytest.skip("PEFT draws in the order in which its convolution leaves dW in memory")
    model = merged_by_peft(peft_model(), mode, monkeypatch)
    layer = layer_of(model, name)
    (theirs,) = pairs_of(layer, ["merged"])
    pair, kept = ours(mode, layer)
    expected = dense(theirs)
    assert float((dense(pair) - expected).norm()) < (
        1e-5 if mode.endswith("svd") else 1e-6
    ) * float(expected.norm())
    assert pair.scale == 1 and pair.rank == theirs.rank
    if not mode.endswith("svd"):
        torch.testing.assert_close(pair.down, theirs.down, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(pair.up, theirs.up, rtol=1e-6, atol=1e-6)
        assert kept is None
    else:
        assert 0 < kept.share <= 1


@pytest.mark.parametrize("mode", ("dare-linear-svd", "dare-ties-svd"))
def test_dare_of_a_convolution_draws_in_the_order_of_the_weight(mode):
    from peft.utils import merge_utils

    layer = layer_of(peft_model(), "conv")
    torch.manual_seed(5)
    function = getattr(merge_utils, mode.removesuffix("-svd").replace("-", "_"))
    deltas = [layer.get_delta_weight(a).contiguous() for a in "012"]
    merged = function(deltas, torch.tensor(WEIGHTS), DENSITY).flatten(1)
    u, s, vh = torch.linalg.svd(merged)
    expected = (u[:, :4] * s[:4]) @ vh[:4]
    pair, _ = ours(mode, layer)
    assert float((dense(pair) - expected).norm()) < 1e-5 * float(expected.norm())


@pytest.mark.parametrize("mode", ("cat", "svd", "ties-svd", "magnitude-prune-svd"))
def test_ranks_may_differ_and_a_layer_may_be_in_some_only(mode, monkeypatch):
    model = peft_model(ranks=(2, 3, 5), is_partial=True)
    merged_by_peft(model, mode, monkeypatch)
    largest_of_all = {} if mode == "cat" else {"rank": 5}
    for name, count in zip(LAYERS, (1, 2, 3), strict=True):
        layer = layer_of(model, name)
        assert sum(a in layer.lora_A for a in "012") == count
        (theirs,) = pairs_of(layer, ["merged"])
        pair, _ = ours(mode, layer, **largest_of_all)
        torch.testing.assert_close(dense(pair), dense(theirs), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mode", ("ties", "ties-svd", "dare-ties"))
def test_signs_by_their_number(mode, monkeypatch):
    model = merged_by_peft(peft_model(), mode, monkeypatch, majority_sign_method="frequency")
    layer = layer_of(model, "linear")
    (theirs,) = pairs_of(layer, ["merged"])
    pair, _ = ours(mode, layer, signs="frequency")
    other, _ = ours(mode, layer)
    torch.testing.assert_close(dense(pair), dense(theirs), rtol=1e-5, atol=1e-5)
    assert float((dense(other) - dense(theirs)).abs().max()) > 1e-2


@pytest.mark.parametrize("mode", ("svd", "dare-ties-svd"))
def test_a_wished_rank_is_pefts_svd_rank(mode, monkeypatch):
    model = merged_by_peft(peft_model(), mode, monkeypatch, svd_rank=2)
    layer = layer_of(model, "linear")
    (theirs,) = pairs_of(layer, ["merged"])
    pair, kept = ours(mode, layer, rank=2)
    torch.testing.assert_close(dense(pair), dense(theirs), rtol=1e-5, atol=1e-5)
    assert pair.rank == 2 and kept.share < 1


@pytest.mark.parametrize("mode", OURS)
def test_unequal_ranks_are_refused_where_peft_refuses_them(mode):
    model = peft_model(ranks=(2, 3, 4))
    layer = layer_of(model, "linear")
    if mode == "cat" or mode.endswith("svd"):
        assert ours(mode, layer)[0].rank == (9 if mode == "cat" else 4)
        return
    with pytest.raises(ValueError, match="same r value"):
        model.base_model.add_weighted_adapter(
            ["0", "1", "2"], WEIGHTS, "no", mode.replace("-", "_"), density=0.5
        )
    with pytest.raises(ValueError, match="The ranks are 2, 3, 4"):
        ours(mode, layer)


def test_pieces_are_pefts():
    from peft.utils import merge_utils

    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(6, 11, generator=generator) for _ in range(3)]
    weights = torch.tensor(WEIGHTS)
    for density in (0.05, 0.3, 0.999, 1.0):
        for tensor in tensors:
            expected = merge_utils.prune(tensor, density, "magnitude")
            assert torch.equal(largest(tensor, density), expected)
            torch.manual_seed(3)
            expected = merge_utils.prune(tensor, density, "random", rescale=True)
            assert torch.equal(by_chance(tensor, density, torch.manual_seed(3)), expected)
    torch.testing.assert_close(
        weighted(tensors, weights), merge_utils.task_arithmetic(tensors, weights)
    )
    for signs in ("total", "frequency"):
        expected = merge_utils.ties(tensors, weights, 1.0, signs)
        torch.testing.assert_close(disjoint_mean(tensors, weights, signs), expected)


def test_ties_by_hand():
    """[3, -1, 0, 2] and [-1, -3, 4, 2], half of each kept: [3, 0, 0, 2], [0, -3, 4, 0]; nobody disagrees."""
    tensors = [torch.tensor([3.0, -1.0, 0.0, 2.0]), torch.tensor([-1.0, -3.0, 4.0, 2.0])]
    pruned = [largest(tensor, 0.5) for tensor in tensors]
    assert pruned[0].tolist() == [3, 0, 0, 2] and pruned[1].tolist() == [0, -3, 4, 0]
    assert disjoint_mean(pruned, torch.tensor([1.0, 0.5])).tolist() == [3, -1.5, 2, 2]
    # [3, -1] and [-1, -3] elect +, -: 3 alone is kept, and the mean of -1 and -3
    assert disjoint_mean([t[:2] for t in tensors], torch.ones(2)).tolist() == [3, -2]


def random_pair(out, cols, rank, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    return Pair(
        torch.randn(rank, cols, generator=generator),
        torch.randn(out, rank, generator=generator),
        alpha,
    )


def test_the_sum_of_any_kinds_is_exact_or_the_nearest_of_its_rank():
    pair, whole = random_pair(9, 14, 3, 1.5, 0), torch.randn(9, 14)
    expected = 0.5 * (0.5 * pair.up @ pair.down) - 2 * whole
    none = torch.Generator()
    exact, kept = MODES.parse("sum").merge([pair, whole], [0.5, -2.0], none)
    torch.testing.assert_close(dense(exact), expected, rtol=1e-5, atol=1e-5)
    assert kept.share == pytest.approx(1) and exact.rank == kept.rank == 9
    s = torch.linalg.svdvals(expected.double())
    cut, kept = MODES.parse("sum", rank=4).merge([pair, whole], [0.5, -2.0], none)
    assert cut.rank == 4
    # Eckart and Young: what is missing are the singular values that were cut off
    assert float((dense(cut) - expected).norm()) == pytest.approx(float(s[4:].norm()), rel=1e-5)
    assert kept.share == pytest.approx(float(s[:4].norm() ** 2 / s.norm() ** 2), rel=1e-5)


@pytest.mark.parametrize("mode", ("sum", "svd", "ties-svd"))
def test_energy_gives_the_smallest_rank_that_keeps_it(mode):
    pairs = [random_pair(20, 30, rank, 2.0, rank) for rank in (6, 5)]
    for energy in (0.3, 0.7, 0.95):
        settings = MODES.parse(mode, energy=energy, rank=11, density=1.0)
        pair, kept = settings.merge(pairs, [1.0, 1.0], torch.Generator())
        least = MODES.parse(mode, rank=pair.rank - 1 or 1, density=1.0)
        _, before = least.merge(pairs, [1.0, 1.0], torch.Generator())
        assert kept.share >= energy and (before.share < energy or pair.rank == 1)


def test_lora_sums_of_all_ranks_are_bit_for_bit_cat():
    pairs = [random_pair(20, 30, rank, 2.0, rank) for rank in (2, 5)]
    one, kept = MODES.parse("sum").merge(pairs, [0.3, 2.0], torch.Generator())
    two, _ = MODES.parse("cat").merge(pairs, [0.3, 2.0], torch.Generator())
    assert kept is None and torch.equal(one.down, two.down) and torch.equal(one.up, two.up)


def test_a_change_of_nothing_stays_nothing():
    nothing = Pair(torch.randn(2, 5), torch.zeros(4, 2), 2.0)
    for mode in MODES.names():
        pair, _ = MODES.parse(mode).merge([nothing, nothing], [1.0, 1.0], torch.Generator())
        assert not bool(dense(pair).any())
