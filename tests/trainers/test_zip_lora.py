# SPDX-License-Identifier: Apache-2.0
"""ZipLoRA: the exact LoRA of it, gradients by finite differences, the optimum of a quadratic by least squares."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.pair import Pair
from graft.adapters.zip import BOTH, FIRST, NEITHER, SECOND, Turn, Zip
from graft.trainers.zip_lora import Zipping, ZipPlan
from tests.trainers.toy import Toy, ToyData, ToyNetwork

LAYERS = ("input", "attn2.0", "attn2.2", "output")


def pair(module, rank, seed, alpha=2.0):
    generator = torch.Generator().manual_seed(seed)
    weight = module.weight.flatten(1)
    return Pair(
        0.3 * torch.randn(rank, weight.shape[1], generator=generator),
        0.3 * torch.randn(len(weight), rank, generator=generator),
        alpha,
    )


def pairs_for(root, names=LAYERS):
    return {
        name: (
            pair(root.get_submodule(name), 2, 3 * n),
            pair(root.get_submodule(name), 3, 3 * n + 1),
        )
        for n, name in enumerate(names)
    }


class LinearNetwork(nn.Module):
    """One linear layer over channels, that notes its inputs."""

    def __init__(self, channels=4):
        super().__init__()
        self.layer = nn.Linear(channels, channels).requires_grad_(False)
        self.seen = []

    def forward(self, x, sigma, cond):
        self.seen.append(x.movedim(1, -1).reshape(-1, x.shape[1]).detach().double().numpy())
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


def zipping(network=None, pairs=None, **plan):
    network = network or ToyNetwork()
    turn = Turn()
    given = Zip(pairs or pairs_for(network), turn)
    attached = Attached(network, given, 0)
    plan = {"batch_size": 2, "seed": 1} | plan
    return Zipping(Toy("eps", network), ToyData(5), ToyData(4), attached, turn, ZipPlan(**plan))


def scramble(run, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in run.parameters:
            p.add_(0.4 * torch.randn(p.shape, generator=generator))


def dense(one):
    return one.scale * one.up @ one.down


def test_what_is_saved_is_exactly_what_is_computed():
    """[B1 B2] [A1 diag m1; A2 diag m2] = D1 diag m1 + D2 diag m2, for linear layers and convolutions."""
    network = ToyNetwork()
    plain = copy.deepcopy(network)
    run = zipping(network)
    scramble(run)
    tensors = run.network.tensors("")
    for name, (first, second) in pairs_for(plain).items():
        layer = run.network.layers[name]
        up, down = (tensors[f"{name}.lora_{part}.weight"] for part in ("up", "down"))
        assert down.shape[0] == 5 == float(tensors[f"{name}.alpha"])
        expected = dense(first) * layer.m_1 + dense(second) * layer.m_2
        torch.testing.assert_close(up.flatten(1) @ down.flatten(1), expected, rtol=1e-5, atol=1e-6)
        module = plain.get_submodule(name)
        with torch.no_grad():
            module.weight += expected.reshape(module.weight.shape)
    x, sigma, cond = torch.randn(2, 4, 6, 6), torch.tensor([0.5, 3.0]), torch.zeros(2)
    torch.testing.assert_close(network(x, sigma, cond), plain(x, sigma, cond), rtol=1e-4, atol=1e-5)


def test_it_begins_as_the_direct_sum_and_each_turn_is_one_of_the_two():
    network = ToyNetwork()
    plain = copy.deepcopy(network)
    run = zipping(network)
    x, sigma, cond = torch.randn(2, 4, 6, 6), torch.tensor([0.5, 3.0]), torch.zeros(2)
    for which, counts in ((BOTH, (1, 1)), (FIRST, (1, 0)), (SECOND, (0, 1))):
        changed = copy.deepcopy(plain)
        for name, two in pairs_for(plain).items():
            module = changed.get_submodule(name)
            with torch.no_grad():
                for one, count in zip(two, counts, strict=True):
                    module.weight += count * dense(one).reshape(module.weight.shape)
        run.turn.which = which
        expected = changed(x, sigma, cond)
        torch.testing.assert_close(network(x, sigma, cond), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, plain(x, sigma, cond))


@pytest.mark.parametrize("similarity", ("repo", "paper"))
def test_gradients_are_those_of_finite_differences(similarity):
    run = zipping(similarity=similarity, similarity_weight=0.3)
    scramble(run)
    run.loss(0).backward()
    h = 2e-2
    for p in run.parameters[::3]:
        index = int(p.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p[index] += sign * h
            values.append(float(run.loss(0).detach().double()))
            with torch.no_grad():
                p[index] -= sign * h
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(p.grad[index]), rel=0.02)


@pytest.mark.parametrize("weight", (0.0, 0.05))
def test_the_optimum_of_one_layer_is_that_of_least_squares(weight):
    """|A_c m - D1 x_c|^2 + |A_s m - D2 x_s|^2 + lambda m1.m2 has its gradient 0 where a linear system says."""
    network = LinearNetwork()
    pairs = {"layer": (pair(network.layer, 2, 0), pair(network.layer, 3, 1))}
    run = zipping(network, pairs, similarity="paper", similarity_weight=weight)
    before = float(run.loss(0))
    content, _, style, _ = network.seen  # each as the target sees it, and as the merged one does
    one, two = (dense(p).double().numpy() for p in pairs["layer"])

    def columns(x):
        return np.concatenate([(d[None] * x[:, None]).reshape(-1, 4) for d in (one, two)], 1)

    a_c, a_s = columns(content), columns(style)
    b_c, b_s = (content @ one.T).reshape(-1), (style @ two.T).reshape(-1)
    swap = np.kron(np.array([[0, 1], [1, 0]]), np.eye(4))
    hessian = 2 * (a_c.T @ a_c / len(b_c) + a_s.T @ a_s / len(b_s)) + weight * swap
    best = np.linalg.solve(hessian, 2 * (a_c.T @ b_c / len(b_c) + a_s.T @ b_s / len(b_s)))
    assert weight == 0 or best[:4] @ best[4:] > 0  # so that |m1.m2| is m1.m2
    first = run.loss(0)
    first.backward()
    scale = max(float(p.grad.abs().max()) for p in run.parameters)
    with torch.no_grad():
        for p, values in zip(run.parameters, np.split(best, 2), strict=True):
            p.grad = None
            p.copy_(torch.from_numpy(values))
    loss = run.loss(0)
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in run.parameters) < 1e-3 * scale
    assert float(loss) < before


def test_learning_brings_both_nearer_and_lessens_the_overlap():
    run = zipping(steps=60, learning_rate=0.03, similarity_weight=0.01, batch_size=1)
    before = run.measure()
    told = []
    run.tell = lambda step, loss: told.append(step)
    losses = run.run()
    after = run.measure()
    assert before.overlap == pytest.approx(1.0)
    assert after.overlap < 0.9
    assert after.content + after.style < 0.8 * (before.content + before.style)
    assert told == list(range(1, 61)) and len(losses) == 60
    again = zipping(steps=60, learning_rate=0.03, similarity_weight=0.01, batch_size=1)
    assert again.run() == losses
    frozen = [b for layer in run.layers for b in layer.buffers()]
    assert all(
        torch.equal(a, b)
        for a, b in zip(frozen, (b for layer in again.layers for b in layer.buffers()), strict=True)
    )


def test_the_model_without_both_is_as_near_as_factors_of_nothing():
    """What the distances have to be held against: shrinking both comes this near, and keeps nothing of either."""
    run = zipping(steps=1)
    without = run.measure(NEITHER)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.zero_()
    nothing = run.measure()
    assert without.content == nothing.content > 0 and without.style == nothing.style > 0


def test_the_step_of_the_optimizer_is_that_of_the_whole_loss():
    """The terms are put through backward one by one; their gradients add up."""
    run = zipping(steps=1, learning_rate=0.0, similarity_weight=0.3)
    run.loss(0).backward()
    whole = [p.grad.clone() for p in run.parameters]
    assert run.run() == pytest.approx([float(run.loss(0))])
    for p, expected in zip(run.parameters, whole, strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_the_two_similarities():
    network = LinearNetwork()
    run = zipping(network, {"layer": (pair(network.layer, 2, 0), pair(network.layer, 2, 1))})
    (layer,) = run.layers
    with torch.no_grad():
        layer.m_1.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
        layer.m_2.copy_(torch.tensor([2.0, 1.0, -4.0, 9.0]))
    assert float(layer.similarity("repo")) == pytest.approx((2 + 2 + 2 + 0) / 4)
    assert float(layer.similarity("paper")) == pytest.approx(2.0)


def test_layers_that_one_has_stay_and_none_in_common_is_refused():
    network = ToyNetwork()
    pairs = pairs_for(network)
    pairs["output"] = (pairs["output"][0], None)
    run = zipping(network, pairs, steps=3, learning_rate=0.1)
    assert len(run.layers) == 3
    run.run()
    tensors = run.network.tensors("")
    first = pairs["output"][0]
    assert torch.equal(tensors["output.lora_up.weight"].flatten(1), first.up)
    assert torch.equal(tensors["output.lora_down.weight"].flatten(1), first.down * first.scale)
    apart = {"input": (pairs["input"][0], None), "output": (None, pairs["output"][0])}
    with pytest.raises(ValueError, match="no layer in common"):
        zipping(ToyNetwork(), apart)


def test_a_change_of_another_shape_is_refused():
    network = ToyNetwork()
    wrong = Pair(torch.ones(1, 5), torch.ones(8, 1), 1.0)
    with pytest.raises(
        ValueError, match=r"attn2.0: expected a change of shape \[8, 8\], got \[8, 5\]"
    ):
        Attached(network, Zip({"attn2.0": (wrong, None)}), 0)
    assert "forward" not in network.attn2[0].__dict__
