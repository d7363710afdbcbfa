# SPDX-License-Identifier: Apache-2.0
"""What every noise law, weight and metric must satisfy, over the registries, and closed forms of the loss."""

import pytest
import scipy.stats
import torch

from graft.trainers.denoiser import c_out, c_skip
from graft.trainers.facts import facts
from graft.trainers.objectives import METRICS, NOISE, NOISINGS, WEIGHTS, Objective
from graft.trainers.random import Draws
from tests.trainers import oracles
from tests.trainers.oracles import FAMILIES
from tests.trainers.toy import SIGMA_DATA, Toy


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
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_optimal_denoiser_of_gaussian_data_has_the_closed_form_loss(family, level):
    loss, wanted = oracles.gaussian_loss(family, level)
    assert loss == pytest.approx(wanted, rel=0.01)


LAWS, WEIGHED = oracles.pairs(NOISE), oracles.pairs(WEIGHTS)
UNIFORMS = {kind: oracles.uniforms(kind) for kind in ("uniform", "stratified")}
RANGES = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.7), (0.2, 0.7)]


@pytest.mark.parametrize(("name", "family"), LAWS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_noise_law_is_a_quantile_function_within_the_limits(name, family, low, high):
    toy = Toy(family)
    objective = Objective(NOISE.get(name)(), sigma_min=low, sigma_max=high)
    u = torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64)
    sigma = objective.levels(u, toy)
    assert sigma.shape == u.shape and sigma.dtype == torch.float32
    assert bool((sigma.diff() >= 0).all()) and float(sigma[-1]) > float(sigma[0])
    snapped = toy.nearest(sigma)
    assert float(snapped.min()) >= max(low, float(toy.sigmas[0])) * (1 - 1e-6)
    assert float(snapped.max()) <= (high or float(toy.sigmas[-1])) * (1 + 1e-6)


@pytest.mark.parametrize(("name", "family"), LAWS)
@pytest.mark.parametrize("kind", UNIFORMS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.2, 0.7)])
def test_drawn_levels_follow_the_declared_law(name, family, kind, low, high):
    """Kolmogorov-Smirnov at the 1 % level, D sqrt(N) < 1.63, against the declared law within the limits."""
    sigma, declared = oracles.drawn(name, family, UNIFORMS[kind], low, high)
    found = oracles.kolmogorov(sigma, declared)
    assert found * len(sigma) ** 0.5 < 1.63
    if len(sigma.unique()) > 0.99 * len(sigma):
        library = scipy.stats.ks_1samp(
            sigma.double().numpy(), lambda x: declared(torch.as_tensor(x)).numpy()
        )
        assert found == pytest.approx(library.statistic, abs=1e-4)


def test_the_model_law_gives_every_entry_of_the_table_equally():
    toy = Toy("eps")
    u = torch.arange(4000, dtype=torch.float64) / 4000
    sigma = NOISE.get("model")().quantile(u, toy)
    _, counts = sigma.unique(return_counts=True)
    assert counts.tolist() == [4] * 1000


@pytest.mark.parametrize(("name", "family"), WEIGHED)
def test_weight_is_finite_and_positive_over_the_table(name, family):
    toy = Toy(family)
    weight = WEIGHTS.get(name)()(toy.sigmas, toy)
    assert weight.shape == toy.sigmas.shape and weight.dtype == torch.float32
    assert bool(torch.isfinite(weight).all() and (weight > 0).all())


@pytest.mark.parametrize("name", METRICS.names())
def test_metric_is_zero_at_zero_even_and_differentiable(name):
    metric, toy = METRICS.get(name)(), Toy("eps")
    sigma = torch.tensor([0.4], dtype=torch.float64)
    r = torch.tensor([[-2.0, -0.3, 0.0, 0.3, 2.0]], dtype=torch.float64)
    rho = metric(r, sigma, toy)
    torch.testing.assert_close(rho, rho.flip(1))
    assert float(rho[0, 2]) == 0.0
    assert bool((rho >= 0).all()) and float(rho[0, 4]) > float(rho[0, 3]) > 0
    off_zero = torch.tensor([[-2.0, -0.3, 0.31, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: metric(r, sigma, toy), (off_zero,))


@pytest.mark.parametrize("name", NOISINGS.names())
def test_noise_is_of_its_slot_and_not_of_its_batch(name):
    clean = torch.randn(4, 3, 8, 6, generator=torch.Generator().manual_seed(1))
    noising = NOISINGS.get(name)()
    whole = noising(clean, Draws(5, 2, range(4), 4))
    assert whole.shape == clean.shape and whole.dtype == torch.float32
    parts = [
        noising(clean[s], Draws(5, 2, range(s.start, s.stop), 4))
        for s in (slice(0, 1), slice(1, 4))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(noising(clean, Draws(5, 3, range(4), 4)), whole)
    assert not torch.equal(noising(clean, Draws(6, 2, range(4), 4)), whole)


@pytest.mark.parametrize(("weight", "family"), WEIGHED)
@pytest.mark.parametrize("perturbation", [0.0, 0.1])
def test_a_perfect_denoiser_has_no_loss_whatever_is_chosen(weight, family, perturbation):
    right, wrong = oracles.perfect_losses(weight, family, perturbation)
    assert right == 0 and wrong > 0


@pytest.mark.parametrize("family", ["eps", "v", "edm", "flow", "x0"])
def test_facts_tell_the_families_apart(family):
    known = facts(Toy(family))
    assert known.family == family
    assert known.is_discrete == (family == "eps")
    assert known.sigma_data == (0.5 if family == "edm" else 1.0)
    assert known.is_zero_terminal is False
