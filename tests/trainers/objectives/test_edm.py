# SPDX-License-Identifier: Apache-2.0
"""Karras' lambda: unit weight on EDM's network, and the v loss on an eps network."""

import torch

from graft.trainers.objectives.weights.edm import EDM
from tests.trainers.toy import Toy


def test_playgrounds_network_has_unit_weight():
    """sigma_data 0.5, over the levels 0.002 to 80 of Playground v2.5."""
    sigma = torch.logspace(-2.69897, 1.90309, 200)
    assert float((EDM()(sigma, Toy("edm")) - 1).abs().max()) < 1e-6


def test_an_eps_network_then_minimizes_the_v_loss():
    """With sd = 1, v = (n - sigma y) / sqrt(1 + sigma^2), and an eps error of e is a v error of e sqrt(1 + sigma^2)."""
    sigma = torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(EDM()(sigma, Toy("eps")), torch.tensor([1.01, 2.0, 101.0]))
    torch.testing.assert_close(EDM()(sigma, Toy("v")), torch.ones(3))


def test_flow_by_hand():
    """(SNR + 1 / sd^2) t^2 = (1 - t)^2 + t^2 / sd^2: at t = 0.2, sd = 0.5 it is 0.64 + 0.16."""
    found = EDM(sigma_data=0.5)(torch.tensor([0.2]), Toy("flow"))
    torch.testing.assert_close(found, torch.tensor([0.8]))
