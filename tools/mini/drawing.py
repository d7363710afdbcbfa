# SPDX-License-Identifier: Apache-2.0
"""Drawings as implicit functions: one shape on a textured background, a whole batch at once.

Shapes are signed distances in units of their radius, antialiased over one pixel. All randomness comes from the
`torch.Generator` that is passed in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from . import vocabulary as words

NO_SHAPE_INDEX = len(words.SHAPES)
PICTURE_SIZES = ((64, 64), (48, 80), (80, 48))


@dataclasses.dataclass(frozen=True)
class Attributes:
    """What is in each drawing of a batch; every field is a long tensor ``[B]``.

    `shape` indexes `words.SHAPES` (or is `NO_SHAPE_INDEX`), `colour` and `background` index `words.COLOUR_NAMES`,
    `texture` indexes `words.TEXTURES`, `size` indexes `words.SIZES`.
    """

    shape: torch.Tensor
    colour: torch.Tensor
    background: torch.Tensor
    texture: torch.Tensor
    size: torch.Tensor

    def __len__(self) -> int:
        return self.shape.shape[0]


def random_attributes(
    count: int,
    generator: torch.Generator,
    shapes: int = words.BASE_SHAPES,
    textures: int = words.BASE_TEXTURES,
) -> Attributes:
    """Draw attributes uniformly, with the shape's colour never equal to the background's.

    Args:
        count: How many drawings.
        generator: Source of randomness.
        shapes: Use the first so many shapes; one more than there are adds "no shape".
        textures: Use the first so many textures.

    Returns:
        Attributes of length `count`.
    """

    def pick(limit: int) -> torch.Tensor:
        return torch.randint(limit, (count,), generator=generator)

    colours = len(words.COLOUR_NAMES)
    colour = pick(colours)
    background = (colour + 1 + pick(colours - 1)) % colours
    plain = torch.rand(count, generator=generator) < 0.4
    texture = torch.where(plain, torch.zeros_like(colour), pick(textures))
    return Attributes(pick(shapes), colour, background, texture, pick(len(words.SIZES)))


def _box(u: torch.Tensor, v: torch.Tensor, half_u: float, half_v: float) -> torch.Tensor:
    return torch.maximum(u.abs() - half_u, v.abs() - half_v)


def _triangle(u: torch.Tensor, v: torch.Tensor, inner: float) -> torch.Tensor:
    return torch.maximum(v, math.cos(math.pi / 6) * u.abs() - 0.5 * v) - inner


def _star(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    sector = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    angle = torch.remainder(angle + sector / 2, sector) - sector / 2
    length = torch.hypot(u, v)
    x, y = length * torch.sin(angle.abs()), length * torch.cos(angle)
    outer, inner = 1.05, 0.45
    inner_x, inner_y = inner * math.sin(sector / 2), inner * math.cos(sector / 2)
    edge_x, edge_y = inner_x, inner_y - outer
    norm = math.hypot(edge_x, edge_y)
    return (x * -edge_y + (y - outer) * edge_x) / norm


def _heart(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    v = v - 0.08
    lobes = torch.hypot(u.abs() - 0.424, v + 0.424) - 0.6
    point = (u.abs() + v.abs() - 0.849) / math.sqrt(2)
    return torch.minimum(lobes, point)


def _arrow(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    shaft = _box(u + 0.45, v, 0.55, 0.24)
    head = torch.maximum(-u, (u - 1.0) * 0.62 + v.abs() * 0.78)
    return torch.minimum(shaft, head)


def _crescent(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.98, 0.8 - torch.hypot(u - 0.48, v))


def _hourglass(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(v.abs() - 0.92, (u.abs() - 0.85 * v.abs() - 0.08) / 1.31)


def _diamond(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (u.abs() / 0.62 + v.abs() - 1.05) / 1.9


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "circle": lambda u, v: torch.hypot(u, v) - 0.92,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "triangle": lambda u, v: _triangle(u, v - 0.15, 0.56),
    "star": _star,
    "heart": _heart,
    "cross": lambda u, v: torch.minimum(_box(u, v, 0.98, 0.3), _box(u, v, 0.3, 0.98)),
    "ring": lambda u, v: (torch.hypot(u, v) - 0.7).abs() - 0.24,
    "diamond": _diamond,
    "arrow": _arrow,
    "crescent": _crescent,
    "hourglass": _hourglass,
}


def _wave(angle: torch.Tensor, period: float) -> torch.Tensor:
    """Square wave of 0 and 1 with edges one pixel wide."""
    return (0.5 + torch.sin(angle) * period / (2 * math.pi)).clamp(0, 1)


def _texture(name: str, x: torch.Tensor, y: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """Pattern in 0..1 at pixel positions; `phase` is ``[B, 2, 1, 1]`` in 0..1."""
    across, down = phase[:, 0], phase[:, 1]
    turn = 2 * math.pi
    if name == "striped":
        return _wave(turn * (y / 12 + down), 12)
    if name == "dotted":
        gap = 14.0
        dx = (torch.remainder(x / gap + across, 1) - 0.5) * gap
        dy = (torch.remainder(y / gap + down, 1) - 0.5) * gap
        return (4.4 - torch.hypot(dx, dy) + 0.5).clamp(0, 1)
    if name == "checkered":
        product = torch.sin(turn * (x / 20 + across)) * torch.sin(turn * (y / 20 + down))
        return (0.5 + product * 20 / turn).clamp(0, 1)
    if name == "zigzag":
        sway = (torch.remainder(x / 20 + across, 1) - 0.5).abs() * 16
        return _wave(turn * ((y + sway) / 12 + down), 12)
    if name == "ripple":
        radius = torch.hypot(x - 24 * (across - 0.5), y - 24 * (down - 0.5))
        return _wave(turn * radius / 13, 13)
    return torch.zeros_like(x + across)


def _background(
    attributes: Attributes, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    count = len(attributes)
    phase = torch.rand(count, 2, 1, 1, generator=generator)
    pattern = torch.zeros(count, y.shape[-2], x.shape[-1])
    for index, name in enumerate(words.TEXTURES):
        chosen = attributes.texture == index
        if index and chosen.any():
            pattern[chosen] = _texture(name, x, y, phase[chosen])
    first = _colour(attributes.background, generator)
    dark = first.mean(1, keepdim=True) < 0.3
    second = torch.where(dark, first + 0.33 * (1 - first), first * 0.62)
    return torch.lerp(first, second, pattern[:, None])


def _colour(index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    table = torch.tensor(list(words.COLOURS.values()))
    shift = (torch.rand(index.shape[0], 3, generator=generator) - 0.5) * 0.06
    return (table[index] + shift).clamp(0, 1)[:, :, None, None]


def draw(
    attributes: Attributes,
    generator: torch.Generator,
    height: int = 64,
    width: int = 64,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """Render a batch of drawings.

    Args:
        attributes: What to draw.
        generator: Source of the positions, angles, phases and colour shifts.
        height: Picture height in pixels.
        width: Picture width in pixels.
        offset: Extra shift of the shape in pixels, (down, right), ``[B, 2]``.

    Returns:
        Pictures ``[B, 3, height, width]`` in 0..1, float32.
    """
    count = len(attributes)
    x = (torch.arange(width, dtype=torch.float32) + 0.5 - width / 2).view(1, 1, width)
    y = (torch.arange(height, dtype=torch.float32) + 0.5 - height / 2).view(1, height, 1)
    radius = torch.tensor(words.RADII)[attributes.size] * min(height, width) / 64
    radius = radius * (0.94 + 0.12 * torch.rand(count, generator=generator))
    jitter = torch.rand(count, 3, generator=generator) * 2 - 1
    room = torch.tensor([height, width]).div(2) - radius[:, None]
    centre = jitter[:, :2] * (room * 0.5).clamp(2, 9)
    if offset is not None:
        centre = centre + offset
    angle = (jitter[:, 2] * math.radians(9)).view(-1, 1, 1)
    down, right = centre[:, 0].view(-1, 1, 1), centre[:, 1].view(-1, 1, 1)
    scale = radius.view(-1, 1, 1)
    u = ((x - right) * torch.cos(angle) + (y - down) * torch.sin(angle)) / scale
    v = ((y - down) * torch.cos(angle) - (x - right) * torch.sin(angle)) / scale
    cover = torch.zeros(count, height, width)
    for index, name in enumerate(words.SHAPES):
        chosen = attributes.shape == index
        if chosen.any():
            distance = DISTANCES[name](u[chosen], v[chosen])
            cover[chosen] = (0.5 - distance * scale[chosen]).clamp(0, 1)
    background = _background(attributes, x, y, generator)
    return torch.lerp(background, _colour(attributes.colour, generator), cover[:, None])
