# SPDX-License-Identifier: Apache-2.0
"""diffusers' EDM-style training, step by step with its own scheduler, and what it amounts to."""

import diffusers
import torch

from graft.trainers.data.batch import Batch
from graft.trainers.objectives import Noised, Objective
from graft.trainers.objectives.weights.edm_diffusers import EDMDiffusers
from tests.trainers.toy import Toy

SIGMA = torch.tensor([0.05, 0.7, 9.0])


def parts(family):
    """A loss of ours, and clean latents, noise and the network's answer that it came of."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, answer = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(3))
    toy = Toy(family, lambda x, sigma, cond: answer)
    x = toy.add_noise(SIGMA, noise, clean)
    loss = Objective(weight=EDMDiffusers()).sample_loss(
        toy, Noised(SIGMA, x, clean), Batch(clean, None)
    )
    return loss, clean, noise, x, answer


def test_an_eps_model_has_its_plain_loss():
    loss, _, noise, _, answer = parts("eps")
    assert float(((answer - noise).square().mean((1, 2, 3)) - loss).abs().max()) < 1e-6


def test_a_v_model_has_its_loss_over_one_and_sigma_squared():
    loss, clean, noise, _, answer = parts("v")
    s = SIGMA.view(-1, 1, 1, 1)
    v = (noise - s * clean) / (1 + s**2).sqrt()
    expected = (answer - v).square().mean((1, 2, 3)) / (1 + SIGMA**2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_playground_has_no_weight_on_what_its_scheduler_denoises():
    loss, clean, _, x, answer = parts("edm")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    denoised = scheduler.precondition_outputs(x, answer, SIGMA.view(-1, 1, 1, 1))
    torch.testing.assert_close(
        loss, (denoised - clean).square().mean((1, 2, 3)), rtol=1e-5, atol=1e-6
    )


def test_low_levels_hardly_count_for_playground():
    """(0.1 * 0.5)^2 / (0.1^2 + 0.5^2) = 0.0025 / 0.26 = 0.00961538; the limit is sd^2 = 0.25."""
    weight = EDMDiffusers()(torch.tensor([0.1, 80.0]), Toy("edm"))
    torch.testing.assert_close(weight, torch.tensor([0.00961538, 0.24999]), rtol=1e-4, atol=0)
