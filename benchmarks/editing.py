# SPDX-License-Identifier: Apache-2.0
"""Drawings inverted and given another color: `python -m benchmarks.editing`.

The drawings are the grammar's own, not the model's. The scorer reads shape, color and background of what comes back;
the change of pixels is measured where the shape was drawn and outside of it, after the autoencoder alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import subjects

SKIP, SEED = 0.2, 1


@dataclass(frozen=True)
class Way:
    """How the pictures are edited: an inversion with their own description or none, and one edit."""

    name: str
    method: str = "ledits-dpmpp"
    is_described: bool = True
    scale: float = 1.0
    where: str = "none"
    threshold: float = 0.5


WAYS = (
    Way("not edited", scale=0.0),
    Way("everywhere"),
    Way("where the text changes most", where="difference"),
    Way("and where it is looked at", where="both", threshold=0.3),
    Way("ledits-ddim", method="ledits-ddim"),
    Way("ddim", method="ddim"),
    Way("no description, scale 3", is_described=False, scale=3.0, where="difference"),
)


@dataclass(frozen=True)
class Drawings:
    """Drawings and what they show.

    Attributes:
        pixels: IMAGE ``[B, 64, 64, 3]``.
        inside: 1 where the shape is ``[B, 64, 64]``.
        shown: Shape, color and background of each.
        wanted: The other color of each.
    """

    pixels: torch.Tensor
    inside: torch.Tensor
    shown: list[tuple[str, str, str]]
    wanted: list[str]

    def texts(self, colors: Sequence[str]) -> list[str]:
        """Descriptions, with these colors of the shapes."""
        pairs = zip(self.shown, colors, strict=True)
        return [
            f"a large {color} {shape} on a {back} background" for (shape, _, back), color in pairs
        ]


def drawings(count: int) -> Drawings:
    """Large shapes on plain backgrounds, always the same."""
    from graft.tools.mini import drawing
    from graft.tools.mini import vocabulary as words

    generator = torch.Generator().manual_seed(5)
    found = drawing.random_attributes(count, generator)
    plain, large = torch.zeros_like(found.texture), torch.full_like(found.size, 2)
    found = drawing.Attributes(found.shape, found.colour, found.background, plain, large)
    pixels = drawing.draw(found, generator).clamp(0, 1)
    inside = ((pixels - pixels[:, :, :3, :3].mean((2, 3), keepdim=True)).abs().sum(1) > 0.3).float()
    names, shown, wanted = words.COLOUR_NAMES, [], []
    for shape, color, back in zip(found.shape, found.colour, found.background, strict=True):
        free = [name for n, name in enumerate(names) if n not in (int(color), int(back))]
        shown.append((words.SHAPES[int(shape)], names[int(color)], names[int(back)]))
        wanted.append(free[len(wanted) % len(free)])
    return Drawings(pixels.movedim(1, -1), inside, shown, wanted)


def run(wires: Sequence[Any], drawn: Drawings, way: Way, steps: int = 20) -> torch.Tensor:
    """What comes back, IMAGE ``[B, 64, 64, 3]``."""
    import comfy.samplers

    from graft.host.sampling import editing, inversion
    from graft.samplers.editing import Edit
    from graft.samplers.inversion import INVERSIONS

    model, clip, vae = wires
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    latent = {"samples": vae.encode(drawn.pixels)}
    guider = comfy.samplers.CFGGuider(model)
    own = drawn.texts([color for _, color, _ in drawn.shown])
    guider.set_conds(_encoded(clip, own if way.is_described else [""] * len(own)), [])
    guider.set_cfg(1.0)
    made, _ = inversion.invert(guider, sigmas, latent, INVERSIONS.get(way.method)(), SEED)
    through, left, start, _ = inversion.replayed(made, SKIP)
    edit = Edit(scale=way.scale, threshold=way.threshold, mask=way.where)
    wanted = _encoded(clip, drawn.texts(drawn.wanted))
    # "a large <color> ...": the color is the third word.
    guided, _ = editing.editing(guider, [editing.Wanted(edit, wanted, places=(3,))])
    empty = torch.zeros_like(start["samples"])
    out = guided.sample(empty, start["samples"], through, left, disable_pbar=True, seed=0)
    return vae.decode(out).float().cpu()


def read(images: torch.Tensor, before: torch.Tensor, drawn: Drawings) -> dict[str, float]:
    """Shares of pictures with the old color, the new one, shape and background; change of pixels inside and outside."""
    from graft.metrics.scorer import load_scorer

    verdict = load_scorer().judge(images)
    columns = {
        "old color": (verdict["colour"], [color for _, color, _ in drawn.shown]),
        "new color": (verdict["colour"], drawn.wanted),
        "shape": (verdict["shape"], [shape for shape, _, _ in drawn.shown]),
        "background": (verdict["background"], [back for _, _, back in drawn.shown]),
    }
    found = {
        name: sum(a == b for a, b in zip(one.labels, asked, strict=True)) / len(asked)
        for name, (one, asked) in columns.items()
    }
    change = (images - before).abs().mean(-1)
    for name, where in (("change inside", drawn.inside), ("outside", 1 - drawn.inside)):
        found[name] = float((change * where).sum() / where.sum())
    return found


def measure(
    wires: Sequence[Any], count: int = 32, ways: Sequence[Way] = WAYS, steps: int = 20
) -> dict[str, dict[str, float]]:
    """The table, by way."""
    drawn = drawings(count)
    with torch.inference_mode():
        before = wires[2].decode(wires[2].encode(drawn.pixels)).float().cpu()
        return {way.name: read(run(wires, drawn, way, steps), before, drawn) for way in ways}


def _encoded(clip: Any, texts: Sequence[str]) -> list[Any]:
    """CONDITIONING of a text for each picture."""
    found = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
    pooled = torch.cat([one[1]["pooled_output"] for one in found])
    return [[torch.cat([one[0] for one in found]), {"pooled_output": pooled}]]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=32, help="drawings")
    count = parser.parse_args().count
    subjects.start()
    from graft.benchmarks import editing  # the pack's own modules are there from here on
    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        wires = load_mini()
    table = editing.measure(wires, count, editing.WAYS)
    print("| |", " | ".join(next(iter(table.values()))), "|")
    for name, row in table.items():
        print(f"| {name} |", " | ".join(f"{value:.3f}" for value in row.values()), "|")


if __name__ == "__main__":
    main()
