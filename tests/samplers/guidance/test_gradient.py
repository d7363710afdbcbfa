# SPDX-License-Identifier: Apache-2.0
"""Guidance in the scale of sigma is that of the seeds' loop: x += -dL/dx, and a DDIM step with the same noise."""

import dataclasses
import math

import pytest
import torch

from graft.samplers.guidance import COURSES, LOSSES, Seen, Steps, Term, change, slope

TARGET = (0.1, 0.9, 0.5)
STRENGTH = 40.0
LINEAR = torch.tensor(
    [[0.4, -0.3, 0.1], [0.2, 0.5, -0.2], [-0.1, 0.2, 0.6], [0.3, 0.1, 0.2]]
).double()


def noise_of(y, sigma):
    """An eps of its own, not linear, of y = x / sqrt(a)."""
    c = y / math.sqrt(1 + sigma**2)
    return torch.tanh(c.roll(1, -1) + 0.3 * c.roll(1, 1)) + 0.5 * c


def pixels(x0):
    return torch.einsum("bchw,cr->brhw", x0, LINEAR)


def view(x, index, terms):
    return [Seen(pixels(x)) for _ in terms]


def terms(power=1.0):
    color = LOSSES.get("color")("26 230 128")
    if power != 1.0:
        kind = dataclasses.make_dataclass("Half", [], bases=(type(color),), frozen=True)
        kind.power = power
        color = kind(color.color)
    return [Term(color, COURSES.get("constant")(), STRENGTH)]


def loss_of(x0):
    rgb = torch.tensor([26, 230, 128]).double() / 255 * 2 - 1
    return STRENGTH * (pixels(x0) - rgb.view(1, 3, 1, 1)).abs().mean(dim=(1, 2, 3)).sum()


def seeds_loop(x, alphas, is_through, power=1.0):
    """The loop of the course: in coordinates that keep the variance, with autograd from x."""
    for a, a_next in zip(alphas, [*alphas[1:], 1.0], strict=True):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            eps = noise_of(x / math.sqrt(a), math.sqrt((1 - a) / a))
            eps = eps if is_through else eps.detach()
            x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            step = -torch.autograd.grad(loss_of(x0), x)[0]
        if power == 0.5:
            step = step * math.sqrt(a)
        x, eps = (x + step).detach(), eps.detach()
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next) * eps
    return x


def euler(y, sigmas, is_through, power=1.0, signal=lambda s: 1.0, noise=lambda s: s):
    """Euler steps with D as guidance changes it; y = signal x0 + noise n."""
    steps = Steps(sigmas, signal, noise)
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        step = steps.at(sigma)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            level = noise(sigma) / signal(sigma)
            d = y / signal(sigma) - level * noise_of(y / signal(sigma), level)
        gradient, _ = slope(terms(power), d, step, view)
        if is_through:
            (gradient,) = torch.autograd.grad(d, y, gradient)
        d = (d + change(gradient, step, is_by_input=is_through)).detach()
        y = d + after / sigma * (y.detach() - d)
        steps.done(i)
    return y


@pytest.fixture
def start():
    return torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()


ALPHAS = [float(a) for a in torch.linspace(0.01, 0.995, 20, dtype=torch.float64) ** 1.5]


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("is_through", [False, True])
def test_twenty_steps_are_those_of_the_seeds_loop(start, is_through, power):
    sigmas = [math.sqrt((1 - a) / a) for a in ALPHAS] + [0.0]
    expected = seeds_loop(start, ALPHAS, is_through, power)
    got = euler(start / math.sqrt(ALPHAS[0]), sigmas, is_through, power)
    assert torch.allclose(got, expected, atol=1e-9, rtol=1e-9)
    unguided = euler(start / math.sqrt(ALPHAS[0]), [*sigmas[:1], 0.0], is_through, power)
    assert not torch.allclose(got, unguided, atol=0.1)


@pytest.mark.parametrize("is_through", [False, True])
def test_a_flow_with_the_same_network_is_guided_alike(start, is_through):
    """x_flow = (1 - t) y with t = sigma / (1 + sigma): the same pictures at the same levels."""
    levels = [math.sqrt((1 - a) / a) for a in ALPHAS]
    times = [s / (1 + s) for s in levels] + [0.0]
    expected = seeds_loop(start, ALPHAS, is_through)
    y = start / math.sqrt(ALPHAS[0]) * (1 - times[0])
    got = euler(y, times, is_through, signal=lambda t: 1 - t, noise=lambda t: t)
    assert torch.allclose(got, expected, atol=1e-9, rtol=1e-9)


def test_the_naive_change_of_d_is_less_than_the_seeds(start):
    """D -= (1 + sigma^2) dL/dx0 loses what an Euler step leaves out: 1 - sigma_next / sigma."""
    step = Steps([2.0, 1.0, 0.0]).at(2.0)
    gradient, _ = slope(terms(), start, step, view)
    naive = -gradient
    assert torch.allclose(change(gradient, step), naive / 0.5)


def test_gradients_are_those_of_finite_differences(start):
    step = Steps([2.0, 1.0, 0.0]).at(2.0)
    term = dataclasses.replace(terms()[0], loss=LOSSES.get("color")("26 230 128", "l2"))
    gradient, losses = slope([term], start[:2], step, view)
    rgb = torch.tensor([26, 230, 128]).double() / 255 * 2 - 1

    def total(x):
        return 5 * STRENGTH * (pixels(x) - rgb.view(1, 3, 1, 1)).square().mean(dim=(1, 2, 3))

    assert torch.allclose(torch.tensor(losses)[:, 0].double() * 5 * STRENGTH, total(start[:2]))
    for place in ((0, 0, 0, 0), (1, 3, 2, 1), (0, 2, 3, 3)):
        moved = torch.zeros_like(start[:2])
        moved[place] = 1e-5
        slope_there = (total(start[:2] + moved) - total(start[:2] - moved)).sum() / 2e-5
        assert math.isclose(float(slope_there), float(gradient[place]), rel_tol=1e-6)


def test_a_picture_is_guided_the_same_in_any_batch(start):
    step = Steps([2.0, 1.0]).at(2.0)
    together, losses = slope(terms(), start, step, view)
    for i in range(3):
        alone, loss = slope(terms(), start[i : i + 1], step, view)
        assert torch.equal(alone[0], together[i]) and loss[0] == losses[i]


def test_terms_add_up(start):
    step = Steps([2.0, 1.0]).at(2.0)
    one = terms()[0]
    other = dataclasses.replace(one, loss=LOSSES.get("color")("#ff0000", "l2"), strength=-3.0)
    both, losses = slope([one, other], start, step, view)
    parts = [slope([term], start, step, view)[0] for term in (one, other)]
    assert torch.allclose(both, sum(parts)) and len(losses[0]) == 2


def test_what_is_not_finite_is_refused(start):
    step = Steps([2.0, 1.0]).at(2.0)
    with pytest.raises(RuntimeError, match="step 1 of 1 is not finite"):
        slope(terms(), start[:1], step, lambda x, i, t: [Seen(pixels(x) * float("nan"))])
