# SPDX-License-Identifier: Apache-2.0
"""Putting what a file holds onto clones of a MODEL and a CLIP: merged, or by hooks where it is limited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...plain import some
from ..model import bottlenecks, hooked, picture
from ..model.limits import Limits
from .strengths import Strengths

ROOT = "diffusion_model."


@dataclass(frozen=True)
class Placed:
    """What was put where.

    Attributes:
        model: The patched clone.
        clip: Likewise, or None.
        taken: Places of the patches that the clones took.
        left: Places of those that cannot be limited so.
        how: How it was done, and what it costs; a sentence without its full stop, or several.
    """

    model: Any
    clip: Any
    taken: frozenset[Any]
    left: frozenset[Any]
    how: str


def put(
    model: Any,
    clip: Any,
    patches: Mapping[Any, Any],
    own: bottlenecks.Found,
    strengths: Strengths,
    limits: Limits,
) -> Placed:
    """Put patches and bottleneck adapters onto clones.

    Args:
        model: The host's ModelPatcher; it is not changed.
        clip: The host's CLIP, or None; likewise. Nothing limits what is put on it.
        patches: By place.
        own: The bottleneck adapters.
        strengths: What the effects are multiplied by.
        limits: When and where in the picture they count.

    Raises:
        ValueError: A mask does not go with the MODEL, or nothing can be limited so.
    """
    by_layer = strengths.by_layer([*patches, *own.layers])
    if limits.mask is not None:
        picture.refuse_other_than_unet(model)
    patched, patched_clip = model.clone(), None if clip is None else clip.clone()
    blocks, left = own.put(patched, by_layer, limits)
    out: set[Any] = set()
    layers: list[str] = []
    taken: set[Any] = set()
    if limits.are_none:
        for strength in sorted(set(by_layer.values())):
            group = {at: patch for at, patch in patches.items() if by_layer.get(at) == strength}
            taken |= set(patched.add_patches(group, strength))
    else:
        effects, out = hooked.effects(model, patches, by_layer, limits)
        left += [str(at if isinstance(at, str) else at[0]).removeprefix(ROOT) for at in out]
        if effects:
            hooked.Hooked(effects, limits).put(patched)
        layers = list(effects)
        taken |= {at for at in patches if at in by_layer} - out
        if left and not layers and not blocks:
            raise ValueError(f"Nothing of it can be limited {limits.reason}: {some(left)}.")
    if patched_clip is not None:
        of_text = set(patched_clip.add_patches(patches, strengths.clip))
        taken |= of_text
    is_merged = limits.are_none and any(by_layer.get(at) for at in taken)
    how = _how(is_merged, layers, blocks, limits, left)
    if not limits.are_none and patched_clip is not None and of_text:
        how += ". Its text encoders count for the whole of the prompt"
    return Placed(patched, patched_clip, frozenset(taken), frozenset(out), how.removeprefix(". "))


def _how(
    is_merged: bool, layers: list[str], blocks: list[str], limits: Limits, left: list[str]
) -> str:
    said = ["Merged: no cost per step"] if is_merged else []
    counts = [f"{len(layers)} layers"] * bool(layers) + [f"{len(blocks)} blocks"] * bool(blocks)
    if counts:
        why = limits.reason or "as bottleneck adapters are"
        said.append(f"Hooked: {' and '.join(counts)}, {why}")
    if left:
        said.append(f"Left out, as they cannot be limited {limits.reason}: {some(left)}")
    return ". ".join(said)
