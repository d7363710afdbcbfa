# SPDX-License-Identifier: Apache-2.0
"""How far the trainer is from closed forms and from the libraries, as numbers that tests and figures bound."""

import itertools

import torch

from graft.trainers.data.batch import Batch
from graft.trainers.denoiser import c_skip
from graft.trainers.ema import EMA
from graft.trainers.events import Progress
from graft.trainers.objectives import METRICS, NOISE, NOISINGS, WEIGHTS, Noised, Objective
from graft.trainers.objectives.levels import limits
from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.prodigy import Prodigy
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.random import Draws
from graft.trainers.stepping import Stepper
from tests.trainers.toy import SIGMA_DATA, Toy

FAMILIES = ("eps", "v", "flow", "edm")


def goes_with(part, family):
    """Whether a registered part is for a family."""
    return family in getattr(part, "families", FAMILIES)


def pairs(registry):
    """Every registered name with every family that it goes with."""
    return [(n, f) for n in registry.names() for f in FAMILIES if goes_with(registry.get(n), f)]


class Perfect(Toy):
    """Answers with what it is told, whatever comes."""

    def __call__(self, x, sigma, cond):
        return cond


def perfect_losses(weight, family, perturbation=0.0):
    """The worst loss of a denoiser without error, and the least of one with some, over metrics, noisings and masks."""
    clean = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    toy, right, wrong = Perfect(family), [], []
    for metric, noising in itertools.product(METRICS.names(), NOISINGS.names()):
        objective = Objective(
            weight=WEIGHTS.get(weight)(),
            metric=METRICS.get(metric)(),
            noising=NOISINGS.get(noising)(),
            input_perturbation=perturbation,
            stratified=True,
        )
        noised = objective.noised(toy, clean, Draws(1, 0, range(3), 3))
        for mask in (None, (clean[:, :1] > 0).float()):
            for error, found in ((0.0, right), (1e-2, wrong)):
                batch = Batch(clean, noised.target + error, mask=mask)
                found += objective.sample_loss(toy, noised, batch).tolist()
    return max(right), min(wrong)


def gaussian_loss(family, level):
    """The loss of the best denoiser of Gaussian data, and what it is in closed form.

    Data N(0, s^2), linear optimum: the error of D is s^2 sigma^2 / (s^2 + sigma^2) (flow: with t). Over c_out^2: eps
    s^2/(s^2+sigma^2); v s^2 (1+sigma^2)/(s^2+sigma^2); flow s^2/((1-t)^2 s^2 + t^2); EDM with sigma_data = s: 1.
    """
    s, generator = SIGMA_DATA, torch.Generator().manual_seed(0)
    clean = s * torch.randn(8, 1, 256, 256, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    sigma = torch.full((8,), level)
    toy = Toy(family)
    x = toy.add_noise(sigma, noise, clean)
    flow = (1 - level) ** 2 * s**2 + level**2
    gain = (1 - level) * s**2 / flow if family == "flow" else s**2 / (s**2 + level**2)
    ones = torch.ones(8, 1, 1, 1)
    scale = toy.combine(sigma, ones, 0 * ones)
    toy.network = lambda x, sigma, cond: (gain * x - c_skip(toy, sigma) * x) / scale
    loss = Objective().sample_loss(toy, Noised(sigma, x, clean), Batch(clean, None)).mean()
    wanted = {
        "eps": s**2 / (s**2 + level**2),
        "v": s**2 * (1 + level**2) / (s**2 + level**2),
        "flow": s**2 / flow,
        "edm": 1.0,
    }
    return float(loss), wanted[family]


def uniforms(kind):
    """2000 draws of 250 steps, as the loop takes them: ``uniform`` or ``stratified``."""
    draws = [Draws(5, step, range(8), 8) for step in range(250)]
    return torch.cat([getattr(one, kind)("sigma") for one in draws])


def drawn(name, family, u, low=0.0, high=0.0):
    """Noise levels of a law at ``u``, sorted, and the law's distribution within the limits."""
    toy, law = Toy(family), NOISE.get(name)()
    sigma = Objective(law, sigma_min=low, sigma_max=high).levels(u, toy).sort().values
    first, last = limits(toy, low, high)
    just = 1 - 1e-6  # levels of a table are atoms: both sides of each count
    below, end = law.cdf(torch.tensor([first * just, last]), toy).tolist()
    return sigma, lambda x: (law.cdf(x, toy) - below) / (end - below)


def kolmogorov(sigma, declared):
    """Kolmogorov's D of sorted levels against a distribution, which may have atoms."""
    ranks = torch.arange(len(sigma) + 1, dtype=torch.float64) / len(sigma)
    levels, counts = sigma.unique(return_counts=True)
    at = counts.cumsum(0)
    above = (ranks[at] - declared(levels)).abs().max()
    under = (ranks[at - counts] - declared(levels * (1 - 1e-6))).abs().max()
    return float(max(above, under))


def ema_gap(decay, steps=40):
    """The largest difference from diffusers' EMAModel along random walks of weights."""
    from diffusers.training_utils import EMAModel

    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 5), "b": (7,)}
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }
    ours, library = EMA(parameters, decay), EMAModel(list(parameters.values()), decay=decay)
    library.step(list(parameters.values()))  # its first update copies the start, where ours begins
    worst = 0.0
    for _ in range(steps):
        with torch.no_grad():
            for p in parameters.values():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
        ours.update()
        library.step(list(parameters.values()))
        worst = max(worst, _gap(ours.state().values(), library.shadow_params))
    return worst


def prodigy_gap(loop_of, steps=8):
    """The largest difference from prodigyopt along a run, the learning rates that were told, and the library's group.

    Args:
        loop_of: Makes a loop of so many steps with an optimizer.
        steps: Steps of the run.
    """
    import prodigyopt

    loop = loop_of(steps=steps, optimizer=Optimizer(Prodigy(d0=1e-4, d_coef=9.0), Cosine(warmup=2)))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in loop.parameters.values()]
    safe = {"use_bias_correction": True, "safeguard_warmup": True}
    how = {"betas": (0.9, 0.99), "weight_decay": 0.01, "d0": 1e-4, "d_coef": 9.0}
    library = prodigyopt.Prodigy(copies, lr=1.0, **how, **safe)
    told, step, worst = [], loop.stepper.algorithm.step, [0.0]
    loop.sink = told.append

    def both():
        for p, q in zip(loop.parameters.values(), copies, strict=True):
            q.grad = p.grad.clone() if p.grad is not None else None
        library.param_groups[0]["lr"] = loop.stepper.algorithm.param_groups[0]["lr"]
        step()
        library.step()
        worst.append(_gap(loop.parameters.values(), copies))

    loop.stepper.algorithm.step = both
    loop.run()
    rates = [event.lr for event in told if isinstance(event, Progress)]
    return max(worst), rates, library.param_groups[0]


def moved_at_rest(algorithm, is_ours=True, steps=20):
    """How far the last of ``steps`` moves a group that stopped half-way; the library's way where not ours."""
    parameters = {n: torch.nn.Parameter(torch.ones(2)) for n in ("m.up", "text_encoders.a.up")}
    stepper = Stepper(Optimizer(algorithm, text_stop=0.5, text_weight_decay=0.1), parameters)
    target = torch.tensor([1.0, -2.0])
    for number in range(steps):
        for p in parameters.values():
            p.grad = p.detach() - target
        before = parameters["text_encoders.a.up"].detach().clone()
        stepper.begin(number, steps)
        (stepper if is_ours else stepper.algorithm).step()
    return _gap([parameters["text_encoders.a.up"]], [before])


def _gap(ones, others):
    return max(
        float((a.detach() - b.detach()).abs().max()) for a, b in zip(ones, others, strict=True)
    )
