# SPDX-License-Identifier: Apache-2.0
"""Class images count at every noise level alike (diffusers' train_dreambooth: Min-SNR is for the instance half)."""

import torch

from graft.trainers.data.batch import Batch
from graft.trainers.objectives import WEIGHTS, Noised, Objective
from tests.trainers.toy import Toy


def test_a_plain_batch_is_not_weighted():
    toy = Toy("eps", lambda x, sigma, cond: torch.zeros_like(x))  # D = x
    sigma = torch.tensor([0.1, 1.0, 10.0])
    clean = torch.zeros(3, 4, 2, 2)
    noise = torch.ones_like(clean)
    noised = Noised(sigma, toy.add_noise(sigma, noise, clean), clean)
    objective = Objective(weight=WEIGHTS.get("min-snr")())
    # The residual is (x - y) / sigma = 1 everywhere, and Min-SNR's weight min(1 / s^2, 5) s^2: 0.05, 1, 1.
    weighted = objective.sample_loss(toy, noised, Batch(clean, None))
    torch.testing.assert_close(weighted, torch.tensor([0.05, 1.0, 1.0]))
    plain = objective.sample_loss(toy, noised, Batch(clean, None, plain=True))
    torch.testing.assert_close(plain, torch.ones(3))
