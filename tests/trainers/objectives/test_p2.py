# SPDX-License-Identifier: Apache-2.0
"""P2 against its formula on the eps loss, 1 / (k + SNR)^gamma."""

import pytest
import torch

from graft.trainers.objectives.weights.p2 import P2
from tests.trainers.objectives.test_min_snr import snr_and_sigma
from tests.trainers.toy import Toy


def test_eps_weights_are_the_papers_numbers():
    """t = 0, 10, 999: SNR = 1175.44, 103.507 and 0.00468191; 1 / (1 + SNR) by hand."""
    _, sigma = snr_and_sigma()
    expected = torch.tensor([1 / 1176.44, 1 / 104.507, 1 / 1.00468191])
    torch.testing.assert_close(P2()(sigma[[0, 2, 7]], Toy("eps")), expected, rtol=1e-4, atol=0)
    root = P2(gamma=0.5)(sigma[[0, 2, 7]], Toy("eps"))
    torch.testing.assert_close(root, expected.sqrt(), rtol=1e-4, atol=0)
    assert P2(gamma=0.0)(sigma, Toy("eps")).tolist() == pytest.approx([1.0] * 8, rel=1e-5)


def test_v_weighs_the_denoised_latent_alike():
    """eps' weight over sigma^2 times v's c_out^2 = sigma^2 / (1 + sigma^2): 1 / ((1 + SNR) (1 + sigma^2))."""
    sigma = torch.tensor([0.5, 2.0])
    expected = torch.tensor([1 / (5 * 1.25), 1 / (1.25 * 5)])
    torch.testing.assert_close(P2()(sigma, Toy("v")), expected, rtol=1e-5, atol=0)
