# SPDX-License-Identifier: Apache-2.0
"""The shifted law: shift 3 sends t = 0.25, 0.5, 0.75 to 0.5, 0.75, 0.9."""

import torch

from graft.trainers.objectives.noise.shifted import Shifted
from tests.trainers.toy import Toy

U = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


def test_quantiles_by_hand():
    toy = Toy("flow")
    torch.testing.assert_close(Shifted(3.0).quantile(U, toy), torch.tensor([0.5, 0.75, 0.9]))
    torch.testing.assert_close(Shifted(1.0).quantile(U, toy), U.float())
    torch.testing.assert_close(Shifted(3.0).cdf(torch.tensor([0.5, 0.75, 0.9]), toy), U)


def test_never_two_shifts():
    """A model with shift 3 and this law with shift 3 give what the model's own table gives, and not shift 9."""
    toy, t = Toy("flow"), torch.arange(1, 1001) / 1000
    toy.sigmas = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(Shifted(3.0).quantile(t[:-1].double(), toy), toy.sigmas[:-1])
