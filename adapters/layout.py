# SPDX-License-Identifier: Apache-2.0
"""The layers of a model as a picture has them: groups of blocks, the parts of each, and a pattern for every part.

Groups are the ways down, through and up of a UNet, or the rows of blocks of a transformer. What the block language
selects is not decided here but by itself: a cell's patterns are checked to select its layers and no others.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ..plain import plain
from .change import block_of
from .targets import kind, matching

OTHER = "other"
TITLES = {
    "input_blocks": "down",
    "middle_block": "middle",
    "output_blocks": "up",
    "double_blocks": "double",
    "single_blocks": "single",
    "joint_blocks": "joint",
}
_UNET = ("input_blocks", "middle_block", "output_blocks")
_TRANSFORMER = re.compile(r"(.+?)\.transformer_blocks\.\d+\.(attn1|attn2|ff)\.")
_RESIDUAL = ("in_layers", "out_layers", "emb_layers", "skip_connection")
_STREAMS = ("x_block", "context_block")  # SD 3: what they hold is told apart, too
_GLOBS = {"proj": "proj_*"}
_ORDER = ("conv", "res", "attn1", "attn2", "ff", "proj", "down", "up")


@dataclass(frozen=True)
class Cell:
    """One part of a block.

    Attributes:
        part: What it is: res, attn1, img_mlp and so on.
        patterns: Patterns of the block language that select its layers together.
        layers: Their names.
        linear: How many of them are linear layers; the others are convolutions.
        channels: What its narrowest layer puts out.
        level: How many times the latent is halved there, of a UNet; None of others.
    """

    part: str
    patterns: tuple[str, ...]
    layers: tuple[str, ...]
    linear: int
    channels: int
    level: int | None


@dataclass(frozen=True)
class Block:
    """A block by its name, ``input_blocks.4``, with its cells."""

    name: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Blocks that stand side by side, and the parts that any of them has, from top to bottom."""

    name: str
    title: str
    parts: tuple[str, ...]
    blocks: tuple[Block, ...]


def layout(root: nn.Module) -> tuple[Group, ...]:
    """The groups of a model's linear and convolution layers, in its own order.

    Args:
        root: The diffusion model; its weights need not be there.

    Returns:
        Groups; what is in no numbered block stands in the last, ``other``.
    """
    modules = {name: m for name, m in root.named_modules() if kind(m)}
    names = list(modules)
    levels = _levels(names)
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        group, block, part = _place(name)
        found.setdefault(group, {}).setdefault(block, {}).setdefault(part, []).append(name)
    made = []
    for group in sorted(found, key=lambda name: name == OTHER):
        blocks = tuple(
            Block(block, _label(group, block), _cells(block, parts, modules, names, levels))
            for block, parts in found[group].items()
        )
        seen = dict.fromkeys(cell.part for block in blocks for cell in block.cells)
        made.append(Group(group, TITLES.get(group, group), tuple(sorted(seen, key=_rank)), blocks))
    return tuple(made)


def place(
    groups: Sequence[Group], group: str, block: str = "", part: str = ""
) -> tuple[tuple[str, ...], set[str]]:
    """Patterns for a part of the picture, and the layers that they select.

    Args:
        groups: The whole picture.
        group: Name of a group.
        block: Name of a block in it; empty for all of its blocks.
        part: A part of the block, or of every block; empty for all of it.

    Returns:
        Patterns of the block language, and names of layers.

    Raises:
        ValueError: There is nothing there.
    """
    cells = [
        (one.name, cell)
        for each in groups
        if each.name == group
        for one in each.blocks
        if block in ("", one.name)
        for cell in one.cells
        if part in ("", cell.part)
    ]
    if not cells:
        where = plain(" ".join(filter(None, (group, block, part))), 100)
        raise ValueError(f"This model has no '{where}'; load the picture again.")
    layers = {name for _, cell in cells for name in cell.layers}
    every = [n for each in groups for one in each.blocks for c in one.cells for n in c.layers]
    if block and part:
        return cells[0][1].patterns, layers
    single = tuple(dict.fromkeys(pattern for _, cell in cells for pattern in cell.patterns))
    whole = tuple(dict.fromkeys(name for name, _ in cells))
    tries = [(f"{group}.*.{_GLOBS.get(part, part)}",), single] if part else [(group,), whole]
    if block:
        tries = [(block,)]
    elif part:
        same = {re.sub(r"(?<=\.)\d+", "[0-9]*", pattern, count=1) for pattern in single}
        tries.insert(1, tuple(same)[:1])
    return next((t for t in tries if _selected(every, t) == layers), single), layers


def _place(name: str) -> tuple[str, str, str]:
    """Group, block and part of a layer."""
    block = block_of(name)
    group = block.partition(".")[0]
    rest = name[len(block) + 1 :].split(".")
    if group in _UNET:
        return group, block, _unet_part(name, rest)
    if group == block:
        return OTHER, block, "layers"
    return group, block, ".".join(rest[: 2 if rest[0] in _STREAMS else 1])


def _unet_part(name: str, rest: list[str]) -> str:
    if found := _TRANSFORMER.match(name):
        return found[2]
    if rest[-1] in ("proj_in", "proj_out") or rest[1:2] == ["proj_in"]:
        return "proj"
    if rest[1:2] and rest[1] in _RESIDUAL:
        return "res"
    return {"op": "down", "conv": "up"}.get(rest[-1], "conv")


def _cells(
    block: str,
    parts: dict[str, list[str]],
    modules: dict[str, nn.Module],
    names: list[str],
    levels: dict[str, int],
) -> tuple[Cell, ...]:
    made = []
    for part in sorted(parts, key=_rank):
        layers = parts[part]
        linear = sum(kind(modules[name]) == "linear" for name in layers)
        channels = min(_width(modules[name]) for name in layers)
        patterns = _patterns(block, part, layers, names)
        level = levels.get(block)
        made.append(Cell(part, patterns, tuple(layers), linear, channels, level))
    return tuple(made)


def _patterns(block: str, part: str, layers: list[str], names: list[str]) -> tuple[str, ...]:
    """The shortest patterns that select these layers and no others."""
    for tried in _tries(block, part, layers):
        if _selected(names, tried) == set(layers):
            return tried
    return tuple(layers)


def _tries(block: str, part: str, layers: Iterable[str]) -> Iterable[tuple[str, ...]]:
    if part == "layers":
        yield (block,)
    yield (f"{block}.{part}",)
    homes = tuple(dict.fromkeys(_home(name, block) for name in layers))
    if part in ("attn1", "attn2", "ff"):
        yield tuple(f"{home}.*.{part}" for home in homes)
    if part == "proj":
        yield tuple(f"{home}.proj_*" for home in homes)
    yield homes


def _home(name: str, block: str) -> str:
    """``input_blocks.4.1`` of a layer in ``input_blocks.4``."""
    return f"{block}.{name[len(block) + 1 :].split('.')[0]}"


def _selected(names: list[str], patterns: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        try:
            found |= matching(names, pattern)
        except ValueError:  # it selects nothing: another is tried
            return set()
    return found


def _levels(names: list[str]) -> dict[str, int]:
    """How many times the latent is halved in each block of a UNet."""
    found: dict[str, int] = {}
    level = 0
    for block in dict.fromkeys(block_of(name) for name in names):
        if block.partition(".")[0] not in _UNET:
            continue
        own = [name[len(block) + 1 :] for name in names if name.startswith(f"{block}.")]
        level += any(name.split(".")[-1] == "op" for name in own)
        found[block] = level
        level -= any(name.split(".")[1:] == ["conv"] for name in own)
    return found


def _width(module: nn.Module) -> int:
    """Channels that a layer puts out."""
    return int(getattr(module, "out_features", getattr(module, "out_channels", 0)))


def _label(group: str, block: str) -> str:
    return block if group == OTHER else block.rpartition(".")[2] if "." in block else ""


def _rank(part: str) -> tuple[int, str]:
    return (_ORDER.index(part), "") if part in _ORDER else (len(_ORDER), part)
