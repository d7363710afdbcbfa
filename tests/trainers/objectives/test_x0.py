# SPDX-License-Identifier: Apache-2.0
"""w = c_out^2 gives the mean squared error of the denoised latent, whatever the family."""

import pytest
import torch

from graft.trainers.data.batch import Batch
from graft.trainers.objectives import Noised, Objective
from graft.trainers.objectives.weights.x0 import X0
from tests.trainers.toy import Toy


@pytest.mark.parametrize("family", ["eps", "v", "flow", "edm", "x0"])
def test_the_loss_is_the_error_of_the_denoised_latent(family):
    generator = torch.Generator().manual_seed(0)
    clean, wrong = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    toy = Toy(family)
    toy.__class__ = type("Says", (Toy,), {"__call__": lambda self, x, sigma, cond: wrong})
    sigma = torch.tensor([0.1, 0.3, 0.9])
    loss = Objective(weight=X0()).sample_loss(toy, Noised(sigma, clean, clean), Batch(clean, None))
    plain = torch.nn.functional.mse_loss(wrong, clean, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(loss, plain)


def test_eps_weight_is_sigma_squared():
    torch.testing.assert_close(X0()(torch.tensor([0.3]), Toy("eps")), torch.tensor([0.09]))
