# SPDX-License-Identifier: Apache-2.0
"""The learned log-variance: its optimum, its gradient, and that it is no part of the network."""

import pytest
import torch

from graft.trainers.data.batch import Batch
from graft.trainers.objectives.log_variance import LogVariance
from tests.trainers.objectives.test_cuts import run

CPU = torch.device("cpu")


def test_it_becomes_the_logarithm_of_the_mean_loss():
    log_variance, draw = LogVariance(CPU), torch.Generator().manual_seed(0)
    for _ in range(600):
        sigma = torch.exp(torch.randn(64, generator=draw))
        mean = 0.02 * (1 + sigma)
        noisy = mean * (0.5 + torch.rand(64, generator=draw))
        log_variance.minimized(noisy, sigma, learns=True).mean().backward()
        log_variance.step()
    sigma = torch.tensor([0.3, 1.0, 3.0])
    off = log_variance(sigma) - (0.02 * (1 + sigma)).log()
    assert off.abs().max() < 0.15


@pytest.mark.parametrize("u", [0.0, -2.0])
def test_its_gradient_by_hand(u):
    """d/du (l / exp(u) + u) = 1 - l / exp(u), and the loss is divided by exp(u)."""
    log_variance, sigma = LogVariance(CPU), torch.tensor([0.7])
    features = torch.autograd.grad(log_variance(sigma).sum(), log_variance.weights)[0]
    with torch.no_grad():
        log_variance.weights.copy_(u * features / features.square().sum())
    loss = torch.tensor([0.3], requires_grad=True)
    log_variance.minimized(loss, sigma, learns=True).sum().backward()
    factor = torch.tensor(-u).exp()
    torch.testing.assert_close(loss.grad, factor[None])
    torch.testing.assert_close(log_variance.weights.grad, (1 - 0.3 * factor) * features)


def test_others_are_brought_to_scale_and_teach_it_nothing():
    log_variance, sigma = LogVariance(CPU), torch.tensor([0.7])
    loss = torch.tensor([0.3], requires_grad=True)
    log_variance.minimized(loss, sigma, learns=False).sum().backward()
    assert loss.grad == 1
    assert log_variance.weights.grad is None


def test_the_loss_that_is_told_is_the_undivided_one_and_files_have_the_network_alone():
    plain, learned = run({}, 4, 1), run({"learn_log_variance": True}, 4, 1)
    assert learned.losses[0] == plain.losses[0]
    assert min(learned.losses) > 0
    assert learned.network.tensors().keys() == plain.network.tensors().keys()
    assert learned.state().log_variance["step"] == 3
    assert not plain.state().log_variance


def test_what_keeps_the_model_is_no_picture_of_the_training():
    """With the same draws, as where the base is compared on the training pictures themselves."""
    plain = Batch(torch.zeros(1), None)
    assert plain.teaches
    assert not Batch(torch.zeros(1), None, keeps_base=True).teaches
    assert not Batch(torch.zeros(1), None, use="class").teaches


def test_a_loss_of_nothing_stays_a_number():
    log_variance, sigma = LogVariance(CPU), torch.tensor([0.7])
    with torch.no_grad():
        log_variance.weights.fill_(-1e3)
    loss = torch.zeros(1)
    assert log_variance.minimized(loss, sigma, learns=True).abs() <= 20


@pytest.mark.parametrize("state", [{"step": torch.ones(())}, {"weights": torch.ones(1)}])
def test_what_is_no_state_of_it_is_refused(state):
    with pytest.raises(ValueError, match="128 features"):
        LogVariance(CPU).load(state)
