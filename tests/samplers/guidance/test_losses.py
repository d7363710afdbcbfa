# SPDX-License-Identifier: Apache-2.0
"""What every loss of guidance must do, and closed forms of each."""

import math

import pytest
import torch

from graft.samplers.guidance import LOSSES, Seen
from graft.samplers.guidance.losses.clip import squared_angle
from graft.samplers.guidance.losses.color import Color

EMBED = torch.randn(3 * 16, 6, generator=torch.Generator().manual_seed(9)).double()


def embed(parts):
    return torch.tanh(parts.flatten(1) @ EMBED)


def features(picture):
    first = torch.nn.functional.avg_pool2d(picture, 2) ** 3 + picture[:, :, ::2, ::2]
    return first, torch.sin(first.mean(dim=1, keepdim=True).expand(-1, 4, -1, -1) + first[:, :1])


def seen(picture, seed=0):
    generator = torch.Generator().manual_seed(5)
    target = torch.rand((1, 3, 8, 6), generator=generator).double() * 2 - 1
    text = torch.randn((1, 6), generator=generator).double()
    return Seen(
        picture,
        target,
        features(picture),
        features(target),
        text,
        embed,
        side=4,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.fixture
def picture():
    return torch.randn(1, 3, 8, 6, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("name", LOSSES.names())
def test_gradients_are_those_of_finite_differences(name, picture):
    loss = LOSSES.get(name)()
    assert torch.autograd.gradcheck(lambda x: loss(seen(x)), picture.requires_grad_())


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_is_a_number_that_falls_along_its_gradient(name, picture):
    loss = LOSSES.get(name)()
    assert loss.power in (0.5, 1.0) and loss.needs <= {"target", "features", "text"}
    value = loss(seen(picture.requires_grad_()))
    assert value.shape == () and value > 0
    gradient = torch.autograd.grad(value, picture)[0]
    nearer = picture - 1e-3 * gradient / gradient.norm()
    assert loss(seen(nearer)) < value


@pytest.mark.parametrize("name", [n for n in LOSSES.names() if "target" in LOSSES.get(n).needs])
def test_the_target_itself_has_no_loss(name):
    target = seen(torch.zeros(1, 3, 8, 6).double()).target
    assert LOSSES.get(name)()(seen(target)) < 1e-12


def test_the_gradient_of_the_l1_color_is_a_sign_over_the_number_of_values(picture):
    value = Color("#000000")(Seen(picture.requires_grad_()))
    (gradient,) = torch.autograd.grad(value, picture)
    picture, value = picture.detach(), value.detach()
    assert torch.allclose(gradient, (picture + 1).sign() / picture.numel())
    assert math.isclose(float(value), float((picture + 1).abs().mean()))


def test_l2_color_of_white_from_black_is_four():
    black = torch.full((1, 3, 2, 2), -1.0)
    assert float(Color("#ffffff", "l2")(Seen(black))) == 4.0
    assert float(Color("#ffffff", "l1")(Seen(black))) == 2.0


@pytest.mark.parametrize(
    "text", ["#1ae680", "1AE680", "26 230 128", "26,230,128", " 26, 230, 128 "]
)
def test_colors_are_read(text):
    assert Color(text).rgb == (26 / 255, 230 / 255, 128 / 255)


@pytest.mark.parametrize(
    "text", ["", "green", "#12345", "1 2", "1 2 3 4", "256 0 0", "0.1 0.9 0.5"]
)
def test_what_is_no_color_is_refused(text):
    with pytest.raises(ValueError, match="it must be like #1ae680"):
        Color(text)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 180])
def test_the_squared_angle_is_the_seeds_great_circle_distance(degrees):
    """2 asin(|u - v| / 2)^2 of unit vectors at an angle t is t^2 / 2."""
    t = math.radians(degrees)
    u = torch.tensor([[3.0, 0.0]]).double()
    v = torch.tensor([[math.cos(t), math.sin(t)]], dtype=torch.float64) * 7
    got = float(squared_angle(u, v)[0])
    assert math.isclose(got, t**2 / 2, abs_tol=1e-12)
    chord = (u / 3 - v / 7).norm().clamp(max=2)
    assert math.isclose(got, float(2 * (chord / 2).asin() ** 2), abs_tol=1e-6)


def test_equal_vectors_have_a_finite_gradient():
    u = torch.tensor([[1.0, 2.0]], requires_grad=True)
    squared_angle(u, torch.tensor([[1.0, 2.0]])).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_cuts_are_drawn_anew_by_their_generator_alone(picture):
    loss = LOSSES.get("clip")()
    assert loss(seen(picture, 1)) == loss(seen(picture, 1)) != loss(seen(picture, 2))
    whole = LOSSES.get("clip")(cuts=0)
    assert whole(seen(picture, 1)) == whole(seen(picture, 2))


def test_perceptual_distances_of_opposite_features_are_four_a_layer():
    up, down = torch.ones(1, 4, 2, 2), -3 * torch.ones(1, 4, 2, 2)
    given = Seen(torch.zeros(1, 3, 4, 4), features=(up, up), target_features=(down, up))
    assert math.isclose(float(LOSSES.get("perceptual")()(given)), 4.0, rel_tol=1e-6)
