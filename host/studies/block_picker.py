# SPDX-License-Identifier: Apache-2.0
"""What a picture of a model's blocks shows: the layout, which layers a text selects, what a click makes of the text.

Everything is decided by the block language itself, as a run decides it. What is asked comes from a browser: names are
those of the host's lists, or refused.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...adapters import NETWORKS, layout, picking
from ...adapters.learned import MODEL
from ...adapters.targets import PRESETS, chosen, matching
from ...loaders.writing import content as contents
from ...registry import unknown
from ..files import conversion, inspection, lora_files, parts
from ..files.strengths import MOST, Strengths
from ..model import skeleton

BLOCKS, KEEP, STRENGTHS = "blocks", "keep", "strengths"
KINDS = (BLOCKS, KEEP, STRENGTHS)
NO_FILE = ("", "none")
_HEATS = 8


@dataclass(frozen=True)
class Asked:
    """What a browser says of a node.

    Attributes:
        source: One of ``skeleton.SOURCES``: where the MODEL comes from.
        name: The file or family.
        kind: ``blocks`` selects what is trained, ``keep`` what is taken of a file (all where it is empty),
            ``strengths`` are pairs of a pattern and a number.
        text: What the widget says.
        file: A LoRA file, whose layers alone count; none for those of the MODEL.
        network: Kind of adapter, for ``blocks``.
        options: Its further settings.
    """

    source: str
    name: str = ""
    kind: str = BLOCKS
    text: str = ""
    file: str = ""
    network: str = "lora"
    options: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown("kind of text", self.kind, KINDS))


@dataclass(frozen=True)
class _Picture:
    groups: tuple[layout.Group, ...]
    model: Any

    @property
    def cells(self) -> list[layout.Cell]:
        return [cell for group in self.groups for block in group.blocks for cell in block.cells]

    @property
    def layers(self) -> list[str]:
        return [name for cell in self.cells for name in cell.layers]


def picture(source: str, name: str = "") -> dict[str, Any]:
    """The layout of a model, for a drawing.

    Args:
        source: Where the MODEL comes from, one of ``skeleton.SOURCES``.
        name: The file or family.

    Returns:
        Groups of blocks with their cells, the presets that select something, and the families to choose from.

    Raises:
        ValueError: There is no such model; says what there is.
    """
    found = _picture(source, name)
    layers = found.layers
    presets = [preset for preset in PRESETS if _matches(layers, preset)]
    return {
        "title": skeleton.title(found.model),
        "layers": len(layers),
        "presets": presets,
        "groups": [_group(group) for group in found.groups],
    }


def match(asked: Asked) -> dict[str, Any]:
    """Which layers a text selects.

    Args:
        asked: The node.

    Returns:
        ``on`` and ``of``: by cell, in the layout's order, how many layers are selected of how many there are; for
        strengths ``low`` and ``high``, the least and the largest of each cell; and ``error``, in the language's own
        words.

    Raises:
        ValueError: There is no such model or file.
    """
    found = _picture(asked.source, asked.name)
    return _matched(found, asked, _layers(found, asked))


def pick(
    asked: Asked,
    group: str,
    block: str,
    part: str,
    is_on: bool | None = None,
    value: float | None = None,
) -> dict[str, Any]:
    """The text after a click, and which layers it selects.

    Args:
        asked: The node, with the text before.
        group: Where was clicked, as ``adapters.layout.place`` has it.
        block: Likewise.
        part: Likewise.
        is_on: Whether what is there is to be selected; None turns it on where it is not all on, else off.
        value: For strengths: the number there; None takes it away.

    Returns:
        As ``match``, with the new ``text``.

    Raises:
        ValueError: There is no such place, model or file.
    """
    found = _picture(asked.source, asked.name)
    names = _layers(found, asked)
    patterns, layers = layout.place(found.groups, group, block, part)
    if asked.kind == STRENGTHS:
        if value is not None and not (math.isfinite(value) and abs(value) <= MOST):
            raise ValueError(f"A strength is a number from {-MOST:g} to {MOST:g}.")
        text = picking.weighted(asked.text, patterns, value)
    else:
        select = _select(found, asked, names)
        layers &= set(names)
        if is_on is None:
            is_on = not layers <= _selected(asked.text, select)
        text = picking.clicked(asked.text, patterns, layers, is_on, select)
    said = Asked(
        asked.source, asked.name, asked.kind, text, asked.file, asked.network, asked.options
    )
    return {"text": text, **_matched(found, said, names)}


def heat(source: str, name: str, file: str) -> dict[str, Any]:
    """|dW| of a LoRA file by cell.

    Args:
        source: Where the MODEL comes from.
        name: The file or family.
        file: The LoRA file.

    Returns:
        ``size``: a number a cell, None where the file changes nothing or it is not known without the weight.

    Raises:
        ValueError: There is no such file, or it is broken.
    """
    found = _picture(source, name)
    sizes = _sizes(source, name, file, lora_files.fingerprint(file))
    return {"size": [_norm(sizes, cell.layers) for cell in found.cells]}


def _picture(source: str, name: str) -> _Picture:
    model = skeleton.skeleton(source, name)
    groups = getattr(model, "graft_groups", None)
    if groups is None:
        groups = model.graft_groups = layout.layout(model.model.diffusion_model)
    return _Picture(groups, model)


def _group(group: layout.Group) -> dict[str, Any]:
    blocks = [
        {
            "name": block.name,
            "label": block.label,
            "cells": [
                {
                    "part": cell.part,
                    "patterns": cell.patterns,
                    "layers": len(cell.layers),
                    "linear": cell.linear,
                    "channels": cell.channels,
                    "level": cell.level,
                }
                for cell in block.cells
            ],
        }
        for block in group.blocks
    ]
    return {"name": group.name, "title": group.title, "parts": group.parts, "blocks": blocks}


def _matches(layers: Sequence[str], preset: str) -> bool:
    try:
        return bool(matching(layers, preset))
    except ValueError:  # it selects nothing of this model
        return False


def _layers(found: _Picture, asked: Asked) -> list[str]:
    """The layers that a text chooses among: a file's where one is given, else the model's."""
    if asked.kind == BLOCKS or asked.file in NO_FILE:
        return found.layers
    return parts.layers(lora_files.opened(asked.file), found.model)


def _select(found: _Picture, asked: Asked, names: list[str]) -> Callable[[str], Collection[str]]:
    root = found.model.model.diffusion_model

    def trained(text: str) -> Collection[str]:
        network = NETWORKS.parse(asked.network, asked.options, blocks=text)
        targets = network.targets(root)
        taken = set(targets)
        # A network of whole blocks says their names, in which the layers are.
        return [name for name in names if name in taken or _is_in(name, taken)]

    def kept(text: str) -> Collection[str]:
        return chosen(names, text, "blocks") if text.strip() else names

    return trained if asked.kind == BLOCKS else kept


def _selected(text: str, select: Callable[[str], Collection[str]]) -> set[str]:
    try:
        return set(select(text))
    except ValueError:  # it selects nothing
        return set()


def _is_in(name: str, blocks: set[str]) -> bool:
    segments = name.split(".")
    return any(".".join(segments[:n]) in blocks for n in range(1, len(segments)))


def _matched(found: _Picture, asked: Asked, names: list[str]) -> dict[str, Any]:
    known = set(names)
    of = [sum(name in known for name in cell.layers) for cell in found.cells]
    answer: dict[str, Any] = {"of": of, "all": sum(of), "error": ""}
    try:
        if asked.kind == STRENGTHS:
            by_layer = Strengths(blocks=asked.text).by_layer([f"{MODEL}{name}" for name in names])
            strengths = {place.removeprefix(MODEL): value for place, value in by_layer.items()}
            on = {name for name, value in strengths.items() if value}
            spans = [[strengths[n] for n in cell.layers if n in known] for cell in found.cells]
            answer["low"] = [min(span, default=None) for span in spans]
            answer["high"] = [max(span, default=None) for span in spans]
        else:
            on = set(_select(found, asked, names)(asked.text))
    except ValueError as error:
        on, answer["error"] = set[str](), str(error)
    answer["on"] = [sum(name in on for name in cell.layers) for cell in found.cells]
    answer["layers"] = sum(answer["on"])
    return answer


@lru_cache(maxsize=_HEATS)
def _sizes(source: str, name: str, file: str, fingerprint: str) -> Mapping[str, float]:
    read = lora_files.load_as_is(file)
    model = skeleton.skeleton(source, name)
    content = contents.read(read.tensors, read.metadata, conversion.names_of(model))
    sizes, _ = inspection.sizes_of(content)
    return {n.removeprefix(MODEL): size for n, size in sizes.items() if n.startswith(MODEL)}


def _norm(sizes: Mapping[str, float], layers: Sequence[str]) -> float | None:
    found = [sizes[n] for n in layers if math.isfinite(sizes.get(n, math.nan))]
    return math.hypot(*found) if found else None
