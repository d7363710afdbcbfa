# SPDX-License-Identifier: Apache-2.0
"""Min-SNR-gamma against diffusers' SNR and the paper's forms."""

import diffusers
import pytest
import torch
from diffusers.training_utils import compute_snr

from graft.trainers.objectives.weights.min_snr import MinSNR
from tests.trainers.toy import Toy

STEPS = torch.tensor([0, 1, 10, 100, 250, 500, 750, 999])


def snr_and_sigma():
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    snr = compute_snr(scheduler, STEPS)
    return snr, snr.rsqrt()


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("eps", lambda snr: snr.clamp(max=5) / snr),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
    ],
)
def test_weights_equal_the_paper_on_the_schedule_of_stable_diffusion(family, expected):
    snr, sigma = snr_and_sigma()
    torch.testing.assert_close(MinSNR()(sigma, Toy(family)), expected(snr), rtol=1e-4, atol=0)


def test_eps_weights_are_the_published_numbers():
    """t = 0, 1, 10, 100, 250: min(SNR, 5) / SNR by hand from SNR = 1175.44, 585.862, 103.507, 8.45387, 2.06553."""
    _, sigma = snr_and_sigma()
    expected = torch.tensor([5 / 1175.44, 5 / 585.862, 5 / 103.507, 5 / 8.45387, 1.0])
    torch.testing.assert_close(MinSNR()(sigma[:5], Toy("eps")), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("eps", [0.00425372, 0.00853443, 0.0483057, 0.591445, 1, 1, 1, 1]),
        (
            "v",
            [
                0.00425011,
                0.00851989,
                0.0478435,
                0.528884,
                0.673792,
                0.276332,
                0.0561698,
                0.00466009,
            ],
        ),
    ],
)
def test_the_table_of_the_scaled_linear_schedule(family, expected):
    """t = 0, 1, 10, 100, 250, 500, 750, 999: min(SNR, 5) / SNR and min(SNR, 5) / (SNR + 1), from diffusers' SNR."""
    _, sigma = snr_and_sigma()
    assert MinSNR()(sigma, Toy(family)).tolist() == pytest.approx(expected, rel=1e-5)


def test_flow_counts_the_error_of_the_denoised_latent():
    """SNR = ((1 - t) / t)^2 and c_out = t: at t = 0.8 the weight is (1 - t)^2, at t = 0.1 it is gamma t^2."""
    weight = MinSNR(gamma=5.0)(torch.tensor([0.8, 0.1]), Toy("flow"))
    torch.testing.assert_close(weight, torch.tensor([0.04, 0.05]), rtol=1e-4, atol=0)
