# SPDX-License-Identifier: Apache-2.0
"""Two adapters beside each other: which layers they share, and how alike their changes are there."""

import math
from typing import Any

import torch

from ...adapters.file import AdapterFile
from ...loaders.writing import changes
from ...loaders.writing import content as contents
from ...loaders.writing.content import Roles
from ...plain import plain, some
from ..drawing.heat_map import heat_map
from . import conversion
from .inspection import block, part_of, table_of

_LISTED = 3
Sums = list[float]  # |dW1|^2, |dW2|^2, <dW1, dW2>


def compare(one: AdapterFile, other: AdapterFile, model: Any = None) -> tuple[torch.Tensor, str]:
    """Compare what two adapters change, without the model's weights.

    Args:
        one: The first, of any dialect.
        other: The second, likewise.
        model: The host's ModelPatcher, for the names of its own layers, or None.

    Returns:
        IMAGE ``[1, height, width, 3]``: the cosine of the changes by block and kind of layer; and the report.

    Raises:
        ValueError: They have no layer in common, or one is broken.
    """
    first, second, shared = _read(one, other, model)
    cells, unknown = _sums(first, second, shared)
    rows: dict[str, Sums] = {}
    for (at, _), sums in cells.items():
        rows[at] = [a + b for a, b in zip(rows.get(at, [0.0] * 3), sums, strict=True)]
    by_block: dict[str, dict[str, float]] = {}
    for (at, part), sums in cells.items():
        by_block.setdefault(at, {})[part] = cosine(sums)
    image = heat_map(table_of("Cosine of the two changes", by_block, top=1.0))
    return image, _report(one, other, (first, second), shared, unknown, rows)


def overlap(one: AdapterFile, other: AdapterFile, model: Any = None) -> dict[str, float]:
    """How alike two changes are in each block: the cosine of dW1 and dW2, nan where one is 0.

    Args:
        one: The first, of any dialect.
        other: The second, likewise.
        model: The host's ModelPatcher, for the names of its own layers, or None.

    Returns:
        Cosines by block, and of all under an empty name.

    Raises:
        ValueError: They have no layer in common, or one is broken.
    """
    cells, _ = _sums(*_read(one, other, model))
    rows: dict[str, Sums] = {"": [0.0] * 3}
    for (at, _), sums in cells.items():
        for name in ("", at):
            rows[name] = [a + b for a, b in zip(rows.get(name, [0.0] * 3), sums, strict=True)]
    return {name: cosine(sums) for name, sums in rows.items()}


def cosine(sums: Sums) -> float:
    """<dW1, dW2> / (|dW1| |dW2|); nan where one is 0."""
    whole = math.sqrt(sums[0] * sums[1])
    return max(-1.0, min(1.0, sums[2] / whole)) if whole else math.nan


def distance(sums: Sums) -> float:
    """|dW1 - dW2| / |dW1|; nan where dW1 is 0."""
    return math.sqrt(max(sums[0] + sums[1] - 2 * sums[2], 0.0) / sums[0]) if sums[0] else math.nan


def _read(
    one: AdapterFile, other: AdapterFile, model: Any
) -> tuple[dict[str, Roles], dict[str, Roles], list[str]]:
    """The layers of both by generic names, and the names that both have."""
    known = conversion.names_of(model)
    first, second = (contents.read(f.tensors, f.metadata, known).layers for f in (one, other))
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(
            f"'{one.name}' and '{other.name}' have no layer in common: {some(first, _LISTED)} in one, "
            f"{some(second, _LISTED)} in the other. They are for other kinds of models, or for other blocks."
        )
    return first, second, shared


def _sums(
    first: dict[str, Roles], second: dict[str, Roles], shared: list[str]
) -> tuple[dict[tuple[str, str], Sums], list[str]]:
    """Squares and products by block and part, and the layers that cannot be compared without the weight."""
    cells: dict[tuple[str, str], Sums] = {}
    unknown = []
    for name in shared:
        if not (changes.has_change(first[name]) and changes.has_change(second[name])):
            unknown.append(name)
            continue
        found = changes.compared(name, first[name], second[name])
        sums = cells.setdefault((block(name), part_of(name)), [0.0] * 3)
        sums[:] = [a + b for a, b in zip(sums, found, strict=True)]
    return cells, unknown


def _report(
    one: AdapterFile,
    other: AdapterFile,
    layers: Any,
    shared: list[str],
    unknown: list[str],
    rows: dict[str, Sums],
) -> str:
    first, second = layers
    said = [f"{len(shared)} layers in both"]
    for file, own, others in ((one, first, second), (other, second, first)):
        if alone := [name for name in own if name not in others]:
            said.append(f"{len(alone)} in '{plain(file.name)}' only: {some(alone, _LISTED)}")
    if unknown:
        said.append(
            f"{len(unknown)} cannot be compared without the weight (OFT, GLoRA, vectors): {some(unknown, _LISTED)}"
        )
    doras = sum("dora_scale" in roles for layer in layers for roles in layer.values())
    said += ["Of DoRAs the low-rank part is compared, without magnitudes"] if doras else []
    if rows:
        every = [sum(sums[i] for sums in rows.values()) for i in range(3)]
        said += ["", "block: cosine, |dW1 - dW2| / |dW1|, |dW1|, |dW2|"]
        said += [_line(name, sums) for name, sums in rows.items()]
        said.append(_line("all", every))
    return "\n".join(said)


def _line(name: str, sums: Sums) -> str:
    sizes = ", ".join(f"{math.sqrt(max(size, 0.0)):.3g}" for size in sums[:2])
    return f"{name}: {cosine(sums):.3f}, {distance(sums):.3g}, {sizes}"
