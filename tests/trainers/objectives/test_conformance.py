# SPDX-License-Identifier: Apache-2.0
"""What every noise law, weight and metric must satisfy, over the registries, and closed forms of the loss."""

import pytest
import torch

from graft.trainers.data.batch import Batch
from graft.trainers.denoiser import c_out, c_skip
from graft.trainers.objectives import METRICS, NOISE, WEIGHTS, Noised, Objective
from tests.trainers.toy import SIGMA_DATA, Toy

FAMILIES = ("eps", "v", "flow", "edm")


@pytest.mark.parametrize("family", FAMILIES)
def test_probed_preconditioning_is_the_table_of_the_design(family):
    sigma = torch.tensor([0.02, 0.3, 0.9])
    out = c_out(Toy(family), sigma).flatten()
    s2 = sigma**2
    expected = {
        "eps": sigma,
        "flow": sigma,
        "v": sigma / (s2 + 1).sqrt(),
        "edm": sigma * SIGMA_DATA / (s2 + SIGMA_DATA**2).sqrt(),
    }[family]
    torch.testing.assert_close(out, expected)
    skip = {
        "eps": sigma / sigma,
        "flow": sigma / sigma,
        "v": 1 / (s2 + 1),
        "edm": 0.25 / (s2 + 0.25),
    }[family]
    torch.testing.assert_close(c_skip(Toy(family), sigma).flatten(), skip)


@pytest.mark.parametrize("family", FAMILIES)
def test_optimal_denoiser_of_gaussian_data_has_the_closed_form_loss(family):
    """Data N(0, s^2), linear optimum: the error of D is s^2 sigma^2 / (s^2 + sigma^2) (flow: with t).

    Over c_out^2: eps s^2/(s^2+sigma^2); v s^2 (1+sigma^2)/(s^2+sigma^2); flow s^2/((1-t)^2 s^2 + t^2);
    EDM with sigma_data = s: 1.
    """
    s, generator = SIGMA_DATA, torch.Generator().manual_seed(0)
    for value in (0.1, 0.5, 0.9):
        clean = s * torch.randn(8, 1, 256, 256, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.full((8,), value)
        toy = Toy(family)
        x = toy.add_noise(sigma, noise, clean)
        gain = (
            (1 - value) * s**2 / ((1 - value) ** 2 * s**2 + value**2)
            if family == "flow"
            else s**2 / (s**2 + value**2)
        )
        toy.network = lambda x, sigma, cond, toy=toy, gain=gain: (
            (gain * x - c_skip(toy, sigma) * x)
            / toy.combine(sigma, torch.ones(8, 1, 1, 1), torch.zeros(8, 1, 1, 1))
        )
        loss = float(
            Objective().sample_loss(toy, Noised(sigma, x, clean), Batch(clean, None)).mean()
        )
        expected = {
            "eps": s**2 / (s**2 + value**2),
            "v": s**2 * (1 + value**2) / (s**2 + value**2),
            "flow": s**2 / ((1 - value) ** 2 * s**2 + value**2),
            "edm": 1.0,
        }[family]
        assert loss == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", NOISE.names())
def test_noise_law_is_a_quantile_function_within_the_model(name):
    toy = Toy("eps")
    u = torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64)
    sigma = NOISE.get(name)().quantile(u, toy)
    assert sigma.shape == u.shape
    assert sigma.dtype == torch.float32
    assert bool((sigma.diff() >= 0).all())
    assert float(sigma.min()) >= float(toy.sigmas[0]) * (1 - 1e-6)


def test_the_model_law_gives_every_entry_of_the_table_equally():
    toy = Toy("eps")
    u = torch.arange(4000, dtype=torch.float64) / 4000
    sigma = NOISE.get("model")().quantile(u, toy)
    _, counts = sigma.unique(return_counts=True)
    assert counts.tolist() == [4] * 1000


@pytest.mark.parametrize("name", WEIGHTS.names())
@pytest.mark.parametrize("family", FAMILIES)
def test_weight_is_finite_and_positive_over_the_table(name, family):
    toy = Toy(family)
    weight = WEIGHTS.get(name)()(toy.sigmas, toy)
    assert weight.shape == toy.sigmas.shape
    assert bool(torch.isfinite(weight).all() and (weight > 0).all())


@pytest.mark.parametrize("name", METRICS.names())
def test_metric_is_zero_at_zero_even_and_differentiable(name):
    metric = METRICS.get(name)()
    r = torch.tensor([-2.0, -0.3, 0.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    rho = metric(r)
    torch.testing.assert_close(rho, rho.flip(0))
    assert float(rho[2].detach()) == pytest.approx(0.0, abs=1e-6)
    assert bool((rho >= 0).all())
    off_zero = torch.tensor([-2.0, -0.3, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(metric, (off_zero,))


def test_a_perfect_denoiser_has_no_loss():
    clean = torch.randn(3, 4, 5, 5)
    toy = Toy("edm")
    toy.__class__ = type("Perfect", (Toy,), {"__call__": lambda self, x, sigma, cond: clean})
    noised = Noised(torch.ones(3), clean, clean)
    assert float(Objective().sample_loss(toy, noised, Batch(clean, None)).sum()) == 0.0
