# SPDX-License-Identifier: Apache-2.0
"""Against the host's own k-diffusion functions, with random denoisers and the same noise."""

import types

import pytest
import torch

from graft.samplers import sample
from graft.samplers.ddim import DDIM
from graft.samplers.dpmpp_2m import DPMpp2M
from graft.samplers.dpmpp_2m_sde import DPMpp2MSDE
from graft.samplers.edm_euler import EDMEuler
from graft.samplers.edm_heun import EDMHeun
from graft.samplers.lcm import LCM
from tests.samplers import gaussian

pytestmark = pytest.mark.comfy

CHURN = {"s_churn": 6.0, "s_tmin": 0.05, "s_tmax": 30.0, "s_noise": 1.02}


class Model:
    """What the host's functions ask of a model, of an eps model."""

    def __init__(self):
        import comfy.model_sampling as host

        kind = type("Sampling", (host.ModelSamplingDiscrete, host.EPS), {})
        self.network, self.sampling = gaussian.network(), kind()
        patcher = types.SimpleNamespace(get_model_object=lambda name: self.sampling)
        inner = types.SimpleNamespace(model_sampling=self.sampling)
        self.inner_model = types.SimpleNamespace(inner_model=inner, model_patcher=patcher)

    def __call__(self, x, sigma):
        return self.network(x, float(sigma[0]))


def start(steps):
    """In float64: a random denoiser makes more of the rounding of single precision than samplers differ by."""
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(steps))
    return 80 * x.double(), gaussian.karras(steps)


def noises(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return lambda like, *_: torch.randn(like.shape, generator=generator).to(like)


def compare(name, settings, steps, monkeypatch, theirs_by=None, **options):
    import comfy.k_diffusion.sampling as host

    model, (x, sigmas) = Model(), start(steps)
    if theirs_by is not None:
        drawn = noises()
        options["noise_sampler"] = lambda sigma, sigma_next: drawn(x)
    else:
        monkeypatch.setattr(host.torch, "randn_like", noises())
    theirs = getattr(host, f"sample_{name}")(model, x, sigmas, disable=True, **options)
    monkeypatch.undo()
    ours = sample(settings, model.network, x, sigmas, noises(), levels=gaussian.discrete())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize(
    ("name", "kind"), [("heun", EDMHeun), ("euler", EDMEuler), ("dpmpp_2m", DPMpp2M)]
)
def test_deterministic_samplers_are_the_hosts(name, kind, steps, monkeypatch):
    compare(name, kind(), steps, monkeypatch)


@pytest.mark.parametrize(("name", "kind"), [("heun", EDMHeun), ("euler", EDMEuler)])
def test_churn_is_the_hosts(name, kind, monkeypatch):
    compare(name, kind(**CHURN), 18, monkeypatch, **CHURN)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_sde_is_the_hosts(eta, solver, monkeypatch):
    settings = DPMpp2MSDE(eta=eta, s_noise=1.01, solver=solver)
    options = {"eta": eta, "s_noise": 1.01, "solver_type": solver}
    compare("dpmpp_2m_sde", settings, 12, monkeypatch, "noise_sampler", **options)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_hosts_ancestral_euler(eta, monkeypatch):
    compare("euler_ancestral", DDIM(eta=eta), 12, monkeypatch, "noise_sampler", eta=eta)


def test_lcm_is_the_hosts_where_the_model_has_the_boundary(monkeypatch):
    compare("lcm", LCM(boundary=False), 6, monkeypatch, "noise_sampler")


@pytest.mark.parametrize(
    ("schedule", "function"), [("karras", "karras"), ("exponential", "exponential")]
)
def test_schedules_are_the_hosts(schedule, function):
    import comfy.k_diffusion.sampling as host

    from graft.samplers import SCHEDULES, course

    theirs = getattr(host, f"get_sigmas_{function}")(20, 0.03, 14.6)
    ours = course(SCHEDULES.get(schedule)(sigma_min=0.03, sigma_max=14.6), 20)
    torch.testing.assert_close(ours, theirs, rtol=3e-6, atol=1e-7)
    vp = course(SCHEDULES.get("vp")(), 20)
    torch.testing.assert_close(vp, host.get_sigmas_vp(20), rtol=1e-5, atol=1e-7)
