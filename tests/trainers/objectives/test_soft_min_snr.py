# SPDX-License-Identifier: Apache-2.0
"""Soft-Min-SNR against k-diffusion's weighting of EDM's network."""

import torch

from graft.trainers.objectives.weights.soft_min_snr import SoftMinSNR
from tests.trainers.toy import Toy


def test_edm_weight_is_k_diffusions():
    """(sigma sd)^2 / (sigma^2 + sd^2)^2 at sd = 0.5: 1/4 at sigma = 0.5, 0.01 * 0.25 / 0.26^2 = 0.0369822 at 0.1."""
    sigma = torch.tensor([0.5, 0.1, 1.0])
    expected = torch.tensor([0.25, 0.0369822, 0.16])
    torch.testing.assert_close(SoftMinSNR()(sigma, Toy("edm")), expected, rtol=1e-5, atol=0)


def test_eps_weight_by_hand():
    """gamma / (SNR + gamma): SNR = 4 at sigma = 0.5 gives 1/2, SNR = 0.01 at sigma = 10 gives 4 / 4.01."""
    found = SoftMinSNR()(torch.tensor([0.5, 10.0]), Toy("eps"))
    torch.testing.assert_close(found, torch.tensor([0.5, 4 / 4.01]), rtol=1e-5, atol=0)
