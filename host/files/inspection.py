# SPDX-License-Identifier: Apache-2.0
"""What is in an adapter's file, as text and as a map of the model: which dialect, family, kinds, ranks, sizes.

Nothing is refused here but what cannot be read at all: broken numbers and layers are what it is to show.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...adapters.change import block_of
from ...adapters.file import AdapterFile
from ...adapters.learned import MODEL, TEXT
from ...loaders import embedding_file
from ...loaders.finite import not_finite
from ...loaders.roles import ALPHA, DOWN, UP
from ...loaders.writing import changes
from ...loaders.writing import content as contents
from ...loaders.writing.content import Content, Roles
from ...plain import plain, some
from ..drawing.heat_map import Table, heat_map
from . import conversion, result
from .patched_weights import PatchedWeights

_LISTED, _SHOWN = 3, 60
_PARTS = ("self", "cross", "ff", "proj", "conv", "other")
_TOLD = ("ss_", "modelspec.", "graft.")
_HIDDEN = ("prompt", "workflow", "ss_tag_frequency", "ss_bucket_info", "sshs_")

Sizes = dict[str, float]


def inspect(file: AdapterFile, model: Any = None) -> tuple[torch.Tensor, str]:
    """Describe an adapter.

    Args:
        file: The adapter, in any dialect.
        model: The host's ModelPatcher, for |dW| / |W| and how much of it fits, or None.

    Returns:
        IMAGE ``[1, height, width, 3]``: |dW| by block and kind of layer; and the report.

    Raises:
        ValueError: The metadata of diffusers cannot be read.
    """
    content = contents.read(file.tensors, file.metadata, conversion.names_of(model))
    sizes, broken = sizes_of(content)
    weights = {} if model is None else _weights(model, content)
    said = [
        f"'{plain(file.name)}': {len(file.tensors)} tensors, {len(content.layers)} layers",
        f"Dialect: {content.dialect()}",
        f"Made for: {family(content, file.metadata)}",
        "Kinds: " + (", ".join(f"{n} x {what}" for what, n in content.whats().items()) or "none"),
        *_words(file, content),
        *_faults(file, content, broken),
        *_on_model(file, content, model),
        "",
        *_blocks(content, sizes, weights),
        "",
        *settings(file.metadata),
    ]
    if weights:
        shares = {
            name: 100 * size / weights[name] for name, size in sizes.items() if weights.get(name)
        }
        whole = {name: weights[name] for name in shares}
        table = _relative_map(file.name, {n: sizes[n] for n in shares}, whole)
    else:
        table = size_map(f"|dW| of {plain(file.name, 40)}", sizes)
    return heat_map(table), "\n".join(said).strip()


def sizes_of(content: Content) -> tuple[Sizes, list[str]]:
    """|dW| by layer, nan where it needs the weight; and what is wrong with layers that have none."""
    sizes: Sizes = {}
    broken = []
    for name, roles in content.layers.items():
        try:
            sizes[name] = changes.size(name, roles)
        except ValueError as error:
            broken.append(str(error))
    return sizes, broken


def family(content: Content, metadata: Mapping[str, str]) -> str:
    """What kind of model an adapter is for, by its layers' names and widths; and by its metadata."""
    said = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    names = " ".join(content.layers)
    widths = {
        int(roles[DOWN].shape[1])
        for name, roles in content.layers.items()
        if "attn2.to_k" in name and DOWN in roles
    }
    by_width = {768: "SD 1", 1024: "SD 2", 2048: "SDXL"}
    found = next((by_width[width] for width in widths if width in by_width), "")
    if "double_blocks" in names or "single_blocks" in names:
        found = "Flux"
    elif "joint_blocks" in names:
        found = "SD 3"
    elif not found and any(
        mark in names for mark in ("input_blocks", "output_blocks", "middle_block")
    ):
        found = "a UNet of Stable Diffusion's layout"
        found += f", whose texts are {min(widths)} wide" if widths else ""
    elif not found and content.layers and all(name.startswith(TEXT) for name in content.layers):
        found = "text encoders only"
    return f"{found or 'unknown'}{f' (the file says {plain(said, 80)})' if said else ''}"


def part_of(name: str) -> str:
    """Which kind of layer it is: self- or cross-attention, the rest of a transformer, or a residual block."""
    if "attn2" in name or "cross_attn" in name:
        return "cross"
    if "attn" in name or ".attention" in name:
        return "self"
    if ".ff." in name or "mlp" in name:
        return "ff"
    if name.endswith(("proj_in", "proj_out")):
        return "proj"
    wide = ("in_layers.2", "out_layers.3", "skip_connection", ".op", ".conv", "emb_layers.1")
    return "conv" if name.endswith(wide) else "other"


def block(name: str) -> str:
    """The block of a layer by its generic name: a UNet's, or a text encoder's layer."""
    if not name.startswith(TEXT):
        return block_of(name.removeprefix(MODEL))
    encoder, _, rest = name.removeprefix(TEXT).partition(".transformer.")
    numbers = [segment for segment in rest.split(".") if segment.isdigit()]
    return f"{encoder}.{numbers[0]}" if numbers else encoder


def size_map(title: str, sizes: Mapping[str, float]) -> Table:
    """|dW| by block and kind of layer, in a unit in which three digits show."""
    cells = _cells(sizes)
    top = max((value for row in cells.values() for value in row.values()), default=0.0)
    power = -math.floor(math.log10(top)) if top > 0 and math.isfinite(top) else 0
    unit = f", in 1e{-power:d}" if power else ""
    return table_of(f"{title}{unit}", {
        b: {part: value * 10.0**power for part, value in row.items()} for b, row in cells.items()
    })  # fmt: skip


def table_of(
    title: str, cells: Mapping[str, Mapping[str, float]], top: float | None = None
) -> Table:
    """A table of blocks by kinds of layers; one empty row where there is nothing."""
    blocks = sorted(cells, key=_order) or ["nothing"]
    parts = [part for part in _PARTS if any(part in row for row in cells.values())] or ["none"]
    values = [[cells.get(b, {}).get(part, math.nan) for part in parts] for b in blocks]
    most = max((v for row in values for v in row if math.isfinite(v)), default=1.0)
    return Table(title, blocks, parts, values, 0.0, top or most or 1.0, "block")


def settings(metadata: Mapping[str, str]) -> list[str]:
    """How it was trained, as its metadata say: a line for each."""
    told = {
        key: value
        for key, value in sorted(metadata.items())
        if key.startswith(_TOLD) and not key.startswith(_HIDDEN) and value
    }
    if not told:
        return ["The file says nothing of how it was trained."]
    lines = [f"{key}: {plain(value, 120)}" for key, value in told.items()][:_SHOWN]
    more = len(told) - len(lines)
    return ["Training, as the file says:", *lines, *([f"and {more} more"] if more else [])]


def _cells(sizes: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Root of the sum of squares by block and kind of layer."""
    sums: dict[str, dict[str, float]] = {}
    for name, size in sizes.items():
        if math.isfinite(size):
            row = sums.setdefault(block(name), {})
            row[part_of(name)] = math.hypot(row.get(part_of(name), 0.0), size)
    return sums


def _relative_map(name: str, sizes: Mapping[str, float], weights: Mapping[str, float]) -> Table:
    whole = _cells(weights)
    cells = {
        b: {part: 100 * value / whole[b][part] for part, value in row.items()}
        for b, row in _cells(sizes).items()
    }
    return table_of(f"|dW| / |W| of {plain(name, 40)}, in %", cells)


def _order(name: str) -> tuple[int, int, str]:
    first, _, number = name.partition(".")
    ways = ("clip", "t5", "time", "label", "input", "middle", "output", "double", "single")
    way = next((i for i, start in enumerate(ways) if first.startswith(start)), len(ways))
    return way, int(number) if number.isdigit() else 0, name


def _words(file: AdapterFile, content: Content) -> list[str]:
    said = []
    if words := embedding_file.bundled(content.words):
        told = (
            f"{plain(word)} ({', '.join(f'{e} {list(t.shape)}' for e, t in by.items())})"
            for word, by in words.items()
        )
        said.append(f"New words: {'; '.join(told)}")
    trigger = file.metadata.get("modelspec.trigger_phrase", "")
    tags = file.metadata.get("ss_tag_frequency", "")
    if trigger:
        said.append(f"Trigger: {plain(trigger, 200)}")
    elif tags:
        said.append(f"Tags of the data: {plain(tags, 200)}")
    return said


def _faults(file: AdapterFile, content: Content, broken: Iterable[str]) -> list[str]:
    """What is wrong with it, and what ComfyUI passes over."""
    nans = not_finite(file.tensors)
    zeros = [
        name
        for name, roles in content.layers.items()
        if any(r != ALPHA for r in roles) and _is_zero(roles)
    ]
    listed = (
        ("tensors have values that are no finite numbers (NaN or infinity)", nans),
        ("layers do not go together", list(broken)),
        ("tensors are of layers that are there before, under other names", content.doubled),
        ("tensors are no adapter's, and are passed over", content.unknown),
        ("layers change nothing", zeros),
        (
            "tensors of bottleneck adapters, which ComfyUI's Load LoRA passes over",
            list(content.bottlenecks),
        ),
        ("vectors of new words, which ComfyUI's Load LoRA passes over", list(content.words)),
    )
    return [f"{len(names)} {what}: {some(names, _LISTED)}" for what, names in listed if names]


def _is_zero(roles: Roles) -> bool:
    if set(roles) <= {UP, DOWN, ALPHA}:
        return not all(bool(t.any()) for t in roles.values())
    return "diff" in roles and not bool(roles["diff"].any())


def _on_model(file: AdapterFile, content: Content, model: Any) -> list[str]:
    if model is None:
        return []
    of_model = {key: t for key, t in content.tensors().items() if key.startswith(MODEL)}
    if not of_model:
        return ["On the model: nothing, it has no layers of the diffusion model"]
    said = []
    for what, tensors in (("On the model", of_model), ("By ComfyUI's Load LoRA", file.tensors)):
        try:
            said.append(f"{what}: {result.apply(model, tensors)[1].text}")
        except (ValueError, RuntimeError) as error:
            said.append(f"{what}: {error}")
    return said


def _weights(model: Any, content: Content) -> Sizes:
    """|W| of the layers of the diffusion model that an adapter changes."""
    weights = PatchedWeights(model, torch.device("cpu"))
    known = set(weights.names)
    with torch.inference_mode(False), torch.no_grad():
        return {
            name: float(weights.get(f"{name}.weight").norm())
            for name in content.layers
            if f"{name}.weight" in known
        }


def _blocks(content: Content, sizes: Sizes, weights: Sizes) -> list[str]:
    """A line for each block: ranks, alphas, |dW|."""
    by_block: dict[str, list[str]] = {}
    for name in content.layers:
        by_block.setdefault(block(name), []).append(name)
    lines = (
        ["block: layers, rank, alpha, |dW|" + (", |dW| / |W|" if weights else "")]
        if by_block
        else []
    )
    for one in sorted(by_block, key=_order):
        names = by_block[one]
        roles = [content.layers[name] for name in names]
        ranks = Counter(int(r[DOWN].shape[0]) for r in roles if DOWN in r and r[DOWN].ndim)
        alphas = Counter(
            f"{float(r[ALPHA]):g}" for r in roles if ALPHA in r and r[ALPHA].numel() == 1
        )
        known = [sizes[name] for name in names if math.isfinite(sizes.get(name, math.nan))]
        size = f"{math.hypot(*known):.3g}" if known else "needs the model"
        line = f"{one}: {len(names)}, rank {_span(ranks)}, alpha {_span(alphas)}, {size}"
        there = [
            name for name in names if weights.get(name) and math.isfinite(sizes.get(name, math.nan))
        ]
        if there:
            share = math.hypot(*(sizes[n] for n in there)) / math.hypot(
                *(weights[n] for n in there)
            )
            line += f", {share:.2%}"
        lines.append(line)
    if known := [size for size in sizes.values() if math.isfinite(size)]:
        lines.append(
            f"all: |dW| {math.hypot(*known):.3g}, of the middle layer {statistics.median(known):.3g}"
        )
    return lines


def _span(values: Counter[Any]) -> str:
    listed = sorted(values, key=float)
    return (
        "none"
        if not listed
        else f"{listed[0]}"
        if len(listed) == 1
        else f"{listed[0]} to {listed[-1]}"
    )
