# SPDX-License-Identifier: Apache-2.0
"""The validation loss: closed forms for Gaussian data, and that it draws the same each time and nothing else's."""

import pytest
import torch
from torch import nn

from graft.trainers.data.batch import Batch
from graft.trainers.validation import LEVELS, Validator
from tests.trainers.toy import SIGMA_DATA, Toy, ToyData, ToyNetwork

S = 1.7  # standard deviation of the data


class Gaussian:
    """Pictures whose every value is drawn from N(0, S^2)."""

    def __init__(self, count=96, shape=(4, 16, 16), buckets=None):
        generator = torch.Generator().manual_seed(5)
        self.clean = torch.randn(count, *shape, generator=generator) * S
        self.buckets = buckets or [shape] * count
        self.asked = []

    def batches(self, items, draws):
        self.asked.append((tuple(items), draws))
        latents = self.clean[list(items)]
        yield Batch(latents, torch.zeros(len(items)))
        yield Batch(latents * float("nan"), None, keeps_base=True, use="prior")


class Optimal(Toy):
    """The least-squares denoiser of N(0, S^2): D = E[y | x], linear in x."""

    def __call__(self, x, sigma, cond):
        s = sigma.view(-1, 1, 1, 1)
        signal = 1 - s if self.family == "flow" else torch.ones_like(s)
        return signal * S**2 / (signal**2 * S**2 + s**2) * x


def closed_form(family, sigma):
    """E (D - y)^2 = S^2 s^2 / (a^2 S^2 + s^2) with x = a y + s n, over c_out^2 of the family."""
    a = 1 - sigma if family == "flow" else 1.0
    error = S**2 * sigma**2 / (a**2 * S**2 + sigma**2)
    data = {"v": 1.0, "edm": SIGMA_DATA}.get(family)
    c_out = sigma if data is None else sigma * data / (sigma**2 + data**2) ** 0.5
    return error / c_out**2


@pytest.mark.parametrize("family", ["eps", "flow", "v", "edm"])
def test_the_optimal_denoiser_of_gaussian_data_has_its_closed_form_at_every_level(family):
    """98,304 values a level: the mean of squares is within 2 % (over four standard deviations) of its expectation."""
    found = Validator(Optimal(family), Gaussian(), seed=3, batch_size=32)()
    assert len(found) == LEVELS
    for sigma, loss in found:
        assert loss == pytest.approx(closed_form(family, sigma), rel=0.02), sigma


def test_the_levels_are_the_middles_of_eighths_of_the_models_own_table():
    denoiser = Optimal("eps")
    sigmas = [sigma for sigma, _ in Validator(denoiser, Gaussian(2), seed=0)()]
    assert sigmas == [float(denoiser.sigmas[index]) for index in range(62, 1000, 125)]


def test_the_perfect_denoiser_has_no_loss():
    data = Gaussian(3)

    class Perfect(Toy):
        def __call__(self, x, sigma, cond):
            return data.clean[:1].expand_as(x)

    data.clean[1:] = data.clean[:1]
    assert all(loss == 0 for _, loss in Validator(Perfect("eps"), data, seed=0)())


def test_a_call_repeats_itself_whatever_was_drawn_in_between():
    validator = Validator(Optimal("eps"), Gaussian(5), seed=3)
    first = validator()
    torch.manual_seed(123)
    torch.rand(7)
    state = torch.get_rng_state()
    assert validator() == first
    assert torch.equal(torch.get_rng_state(), state)
    assert Validator(Optimal("eps"), Gaussian(5), seed=4)() != first


def test_the_cut_into_batches_does_not_matter_and_buckets_do_not_mix():
    buckets = ["a", "b", "a", "b", "a"]
    data = Gaussian(5, buckets=buckets)
    one = Validator(Optimal("flow"), data, seed=3, batch_size=1)()
    data.asked.clear()
    two = Validator(Optimal("flow"), data, seed=3, batch_size=2)()
    assert [items for items, _ in data.asked] == [(0, 2), (4,), (1, 3)]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def test_no_draw_is_one_of_the_trainings():
    """A purpose of its own sets the held-out pictures' noise apart from that of step 0's slots."""
    data = Gaussian(2)
    Validator(Optimal("eps"), data, seed=3)()
    (_, draws), *_ = data.asked
    from graft.trainers import random

    assert not torch.equal(draws.normal((4,)), random.normal((4,), 3, 0, draws.slots))


def test_nothing_of_a_network_moves_and_dropout_is_off():
    network = ToyNetwork()
    network.attn2.append(nn.Dropout(0.5))
    network.train()
    denoiser, data = Toy("eps", network), ToyData(preserve=0.0)
    validator = Validator(denoiser, data, seed=1, batch_size=2, layers=[network])
    found = validator()
    assert all(module.training for module in network.modules())
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    assert validator() == found


def test_a_model_that_draws_by_itself_draws_the_same_and_takes_nothing_from_the_run():
    class Drawing(Optimal):
        def __call__(self, x, sigma, cond):
            return super().__call__(x, sigma, cond) * torch.rand(1)

    validator = Validator(Drawing("eps"), Gaussian(2), seed=2**64 - 1)
    state = torch.get_rng_state()
    found = validator()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert validator() == found


def test_every_picture_has_noise_of_its_own_at_every_level():
    noises = []

    class Heard(Optimal):
        def add_noise(self, sigma, noise, clean):
            noises.extend(noise)
            return super().add_noise(sigma, noise, clean)

    Validator(Heard("eps"), Gaussian(3), seed=0, batch_size=2)()
    assert len(noises) == 3 * LEVELS
    assert len({float(noise.sum()) for noise in noises}) == 3 * LEVELS


def test_poll_is_asked_before_every_forward_pass_and_can_end_it():
    calls = []

    def poll():
        calls.append(1)
        if len(calls) > 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Validator(Optimal("eps"), Gaussian(3), seed=0, poll=poll)()
    assert len(calls) == 12
