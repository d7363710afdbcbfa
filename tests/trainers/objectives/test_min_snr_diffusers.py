# SPDX-License-Identifier: Apache-2.0
"""diffusers' form of Min-SNR for v models, from its own SNR, and its difference from the paper's."""

import torch

from graft.trainers.objectives.weights.min_snr import MinSNR
from graft.trainers.objectives.weights.min_snr_diffusers import MinSNRDiffusers
from tests.trainers.objectives.test_min_snr import snr_and_sigma
from tests.trainers.toy import Toy


def test_v_weights_are_those_of_the_script():
    """base_weight = min(snr, gamma) / snr; v_prediction: mse_loss_weights = base_weight + 1."""
    snr, sigma = snr_and_sigma()
    expected = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / snr + 1
    torch.testing.assert_close(MinSNRDiffusers()(sigma, Toy("v")), expected, rtol=1e-5, atol=0)


def test_v_weights_are_the_published_numbers():
    """t = 0, 10, 100, 999: 5 / SNR + 1 with SNR = 1175.44, 103.507, 8.45387, and 2 where SNR < 5."""
    _, sigma = snr_and_sigma()
    expected = torch.tensor([1.00425372, 1.0483057, 1.591445, 2.0])
    found = MinSNRDiffusers()(sigma[[0, 2, 3, 7]], Toy("v"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_eps_weights_are_the_papers():
    _, sigma = snr_and_sigma()
    toy = Toy("eps")
    torch.testing.assert_close(
        MinSNRDiffusers()(sigma, toy), MinSNR()(sigma, toy), rtol=1e-5, atol=0
    )
