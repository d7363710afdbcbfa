# SPDX-License-Identifier: Apache-2.0
"""Several adapters as one, layer by layer."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...adapters.change import block_of
from ...adapters.file import AdapterFile
from ...adapters.learned import MODEL
from ...adapters.pair import Kept, Pair
from ...adapters.tokens import BUNDLE
from ...loaders import dialects
from ...loaders.merging import MODES, Change, Mode
from ...trainers import random
from .. import graph
from ..files import result
from ..files.strengths import Strengths
from ..runs.stopping import interrupt
from .changes import Changes, read

_TRIGGER = "modelspec.trigger_phrase"


@dataclass(frozen=True, eq=False)
class Given:
    """An adapter to merge, and what it counts: everywhere, and by block."""

    file: AdapterFile
    weights: Strengths


@dataclass(frozen=True, eq=False)
class Merged:
    """What came of a merge."""

    adapter: AdapterFile
    report: str


def merge(
    given: Sequence[Given],
    mode: Mode,
    model: Any = None,
    clip: Any = None,
    seed: int = 0,
    name: str = "merged",
    node_id: str | None = None,
) -> Merged:
    """Merge adapters.

    Args:
        given: Two or more.
        mode: How.
        model: The MODEL that they are for, or None.
        clip: Its CLIP, or None.
        seed: Of what the mode draws.
        name: Of the merged adapter.
        node_id: Where progress is shown.

    Raises:
        ValueError: They cannot be merged; says why.
    """
    if len(given) < 2:
        raise ValueError(f"There is {len(given)} adapter to merge: connect or choose two to four.")
    with torch.inference_mode(False), torch.no_grad():
        parts = [read(one.file, model, clip, mode.takes_any) for one in given]
        words = _words(parts)
        _check_names(parts, model, clip)
        layers = list(dict.fromkeys(itertools.chain.from_iterable(p.layers for p in parts)))
        weights = [_by_layer(one, part) for one, part in zip(given, parts, strict=True)]
        mode = _ranked(mode, parts)
        tensors, kept = _merged(layers, parts, weights, mode, model, seed, node_id)
        if not tensors and not words:
            raise ValueError("Every weight is 0, so that nothing would be left.")
        facts = {
            "merged": [one.file.name for one in given],
            "merge_mode": repr(mode),
            "merge_weights": [_said(one.weights) for one in given],
        }
        every = tensors | words
        metadata = result.lora_metadata(
            every, model, title=name, trigger=_trigger(given), facts=facts
        )
        lines = [*_summary(given, parts, layers, mode), *_energies(kept)]
        lines += [note for part in parts for note in part.notes]
        lines += [f"new words: {', '.join(_names_of(words))}"] if words else []
        lines += _check(model, clip, tensors)
    return Merged(AdapterFile(every, metadata, name), "\n".join(lines))


def _merged(
    layers: Sequence[str],
    parts: Sequence[Changes],
    weights: Sequence[Mapping[str, float]],
    mode: Mode,
    model: Any,
    seed: int,
    node_id: str | None,
) -> tuple[dict[str, torch.Tensor], dict[str, Kept]]:
    """The merged tensors of all layers, and how much each kept where it was cut."""
    tensors, kept = dict[str, torch.Tensor](), dict[str, Kept]()
    for number, layer in enumerate(layers):
        interrupt()
        graph.show_text(node_id, f"layer {number + 1} of {len(layers)}")
        made, share = _layer(layer, parts, weights, mode, model, seed)
        tensors |= made
        kept |= {layer: share} if share is not None else {}
    return tensors, kept


def _layer(
    layer: str,
    parts: Sequence[Changes],
    weights: Sequence[Mapping[str, float]],
    mode: Mode,
    model: Any,
    seed: int,
) -> tuple[dict[str, torch.Tensor], Kept | None]:
    """The merged tensors of one layer."""
    changes, counts = [], []
    for part, own in zip(parts, weights, strict=True):
        change = part.of(layer, model)
        if change is not None:
            changes.append(change)
            counts.append(own[layer])
    if not any(counts):
        return {}, None
    if any(isinstance(change, torch.Tensor) and change.ndim < 2 for change in changes):
        summed = sum(w * torch.as_tensor(c) for c, w in zip(changes, counts, strict=True))
        key = f"{layer.removesuffix('.bias')}.diff{'_b' if layer.endswith('.bias') else ''}"
        return {key: torch.as_tensor(summed)}, None
    _check_shapes(layer, parts, model)
    shape = next(part.shapes[layer] for part in parts if layer in part.shapes)
    generator = random.generator(seed, f"merge {layer}")
    try:
        pair, kept = mode.merge([_placed(c) for c in changes], counts, generator)
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from error
    ones = (1,) * (len(shape) - 1)
    tensors = {
        f"{layer}.lora_up.weight": pair.up.cpu().reshape(len(pair.up), pair.rank, *ones),
        f"{layer}.lora_down.weight": pair.down.cpu().reshape(pair.rank, *shape),
        f"{layer}.alpha": torch.tensor(float(pair.alpha)),
    }
    return {key: tensor.contiguous() for key, tensor in tensors.items()}, kept


def _check_shapes(layer: str, parts: Sequence[Changes], model: Any) -> None:
    """Refuse changes of layers of different widths, which only files without their model can have."""
    pairs = {part.name: part.pairs[layer] for part in parts if layer in part.pairs}
    shapes = {name: (len(pair.up), pair.down.shape[1]) for name, pair in pairs.items()}
    if model is None and len(set(shapes.values())) > 1:
        said = " and ".join(f"{shape} in '{name}'" for name, shape in shapes.items())
        raise ValueError(f"{layer}: its change is {said}; they are for other models.")


def _placed(change: Change) -> Change:
    """The change on the host's device where that is quick at decompositions in fp64."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        return change if isinstance(change, Pair) else change.flatten(1)
    if isinstance(change, Pair):
        return Pair(change.down.to(device), change.up.to(device), change.alpha)
    return change.flatten(1).to(device)


def _words(parts: Sequence[Changes]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for part in parts:
        twice = sorted(found.keys() & part.words.keys())
        if twice:
            clashing = ", ".join(_names_of(twice))
            raise ValueError(
                f"'{part.name}' and another adapter both have the new word {clashing}: train one of them with another "
                "token."
            )
        found |= part.words
    return found


def _names_of(words: Sequence[str] | Mapping[str, torch.Tensor]) -> list[str]:
    return sorted({key.removeprefix(BUNDLE).partition(".")[0] for key in words})


def _check_names(parts: Sequence[Changes], model: Any, clip: Any) -> None:
    """Whether one layer has one name in all of them: two for one weight, and the host would take the last."""
    for what, wire, is_text in (("layers", model, False), ("text encoders", clip, True)):
        families = {
            _family(layer)
            for part in parts
            for layer in part.layers
            if dialects.is_text(layer) is is_text
        }
        if wire is None and len(families) > 1 and not (is_text and _encoders_only(families)):
            socket = "CLIP" if is_text else "MODEL"
            raise ValueError(
                f"The adapters name their {what} in different ways ({', '.join(sorted(families))}): connect the "
                f"{socket}, so that they can be told."
            )


def _family(layer: str) -> str:
    """``diffusion_model``, ``lora_unet``, ``lora_te1``."""
    first, dot, _ = layer.partition(".")
    return first if dot else "_".join(layer.split("_")[:2])


def _encoders_only(families: set[str]) -> bool:
    """SDXL's two text encoders in one dialect."""
    return families in ({"lora_te1", "lora_te2"}, {"text_encoder", "text_encoder_2"})


def _by_layer(one: Given, part: Changes) -> dict[str, float]:
    """What each layer of an adapter counts."""
    named = [layer for layer in part.layers if layer.startswith(MODEL)]
    others = [layer for layer in part.layers if not layer.startswith(MODEL)]
    if one.weights.blocks.strip() and any(not dialects.is_text(layer) for layer in others):
        raise ValueError(
            f"'{part.name}' names its layers as other programs do (for example {others[0]}), and the weights "
            f"'{one.weights.blocks}' are for the model's own names: connect the MODEL."
        )
    try:
        found = one.weights.by_layer(named)
    except ValueError as error:
        raise ValueError(f"'{part.name}': {error}") from error
    return {**dict.fromkeys(others, one.weights.clip), **found}


def _ranked(mode: Mode, parts: Sequence[Changes]) -> Mode:
    """PEFT's own rank where none is wished: the largest of all, also for layers that only one has."""
    if mode.takes_any or getattr(mode, "rank", None) != 0:  # all others, or a wished one
        return mode
    largest = max((pair.rank for part in parts for pair in part.pairs.values()), default=1)
    return replace(mode, rank=largest)  # type: ignore[type-var]


def _trigger(given: Sequence[Given]) -> str:
    found = (one.file.metadata.get(_TRIGGER, "") for one in given)
    return ", ".join(dict.fromkeys(filter(None, found)))


def _said(weights: Strengths) -> str:
    return f"{weights.model:g}{f' ({weights.blocks.strip()})' if weights.blocks.strip() else ''}"


def _summary(
    given: Sequence[Given], parts: Sequence[Changes], layers: Sequence[str], mode: Mode
) -> list[str]:
    """What was merged, and which layers only some have."""
    named = " and ".join(f"'{one.file.name}' x {_said(one.weights)}" for one in given)
    own = [set(part.layers) for part in parts]
    shared = len(set.intersection(*own))
    name = next(n for n in MODES.names() if MODES.get(n) is type(mode))
    lines = [f"{named}, merged by {name}: {len(layers)} layers, {shared} of them in all"]
    for part, has in zip(parts, own, strict=True):
        missing = [layer for layer in layers if layer not in has]
        if missing and has:
            lines.append(f"not in '{part.name}': {len(missing)} layers, the first is {missing[0]}")
    return lines


def _energies(kept: Mapping[str, Kept]) -> list[str]:
    """How much the ranks kept: of all, and of the block that lost most."""
    if not kept:
        return []
    blocks: dict[str, list[float]] = {}
    for layer, one in kept.items():
        sums = blocks.setdefault(block_of(layer.removeprefix(MODEL)), [0.0, 0.0])
        sums[0] += one.energy
        sums[1] += one.whole
    energy, whole = (sum(sums[n] for sums in blocks.values()) for n in (0, 1))
    shares = {block: e / w if w else 1.0 for block, (e, w) in blocks.items()}
    least = min(shares, key=lambda block: shares[block])
    return [
        f"energy kept: {energy / whole if whole else 1.0:.2%}, least in {least}: {shares[least]:.2%}; rank "
        f"{max(one.rank for one in kept.values())} would keep all"
    ]


def _check(model: Any, clip: Any, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """How much of the result takes effect, by the host's own loader."""
    mine = {k: t for k, t in tensors.items() if clip is not None or not dialects.is_text(k)}
    if model is None or not mine:
        return []
    return [result.apply_both(model, clip, mine)[2].text]
