# SPDX-License-Identifier: Apache-2.0
"""Debiased estimation against diffusers' SNR and kohya's form, 1 / sqrt(min(SNR, 1000)) on the eps loss."""

import pytest
import torch

from graft.trainers.objectives.weights.debiased import Debiased
from tests.trainers.objectives.test_min_snr import snr_and_sigma
from tests.trainers.toy import Toy


def test_eps_weights_are_the_usual_ones():
    snr, sigma = snr_and_sigma()
    expected = snr.clamp(max=1000).rsqrt()
    torch.testing.assert_close(Debiased()(sigma, Toy("eps")), expected, rtol=1e-4, atol=0)


def test_eps_weights_are_the_published_numbers():
    """t = 0, 10, 999: SNR = 1175.44 (held at 1000), 103.507 and 0.00468191."""
    _, sigma = snr_and_sigma()
    expected = torch.tensor([0.0316228, 0.0982917, 14.61462])
    torch.testing.assert_close(
        Debiased()(sigma[[0, 2, 7]], Toy("eps")), expected, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("family", ["v", "flow", "edm"])
def test_every_family_weighs_the_denoised_latent_alike(family):
    """c_out^2 sqrt(SNR): over c_out^2 the same number as for eps models, whose c_out is sigma."""
    sigma = torch.tensor([0.2, 0.5, 0.8])
    toy = Toy(family)
    snr = (1 / sigma - 1) ** 2 if family == "flow" else sigma**-2
    out = toy.combine(sigma, torch.ones(3, 1), torch.zeros(3, 1)).flatten()
    torch.testing.assert_close(Debiased()(sigma, toy), snr.sqrt() * out**2, rtol=1e-5, atol=0)
