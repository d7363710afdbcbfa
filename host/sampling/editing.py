# SPDX-License-Identifier: Apache-2.0
"""Semantic guidance on a GUIDER of the host: it asks as it did, and for the edits' texts beside that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...plain import plain
from ...samplers.editing import DIFFERENCE, NONE, Edit, Part, edited
from ...samplers.guidance import Steps
from .attention_maps import AttentionMaps, Key, Words, layers
from .inversion import EDIT, check_conditioning
from .sampler import check_latent


@dataclass(frozen=True, eq=False)
class Wanted:
    """One edit of those that GRAFT_EDITS carries.

    Attributes:
        edit: Its settings.
        conditioning: CONDITIONING of its text.
        text: The text, where it is known.
        places: Where its words are in the conditioning; None is everywhere but at the beginning.
        mask: MASK drawn by hand, ``[b, H, W]``.
    """

    edit: Edit
    conditioning: Any
    text: str = ""
    places: tuple[int, ...] | None = None
    mask: torch.Tensor | None = None


def wanted(edit: Edit, text: str, clip: Any, conditioning: Any, mask: Any) -> Wanted:
    """An edit of what is on the wires.

    Args:
        edit: Its settings.
        text: What it is about.
        clip: A CLIP, or None.
        conditioning: CONDITIONING in the place of what CLIP makes of the text, or None.
        mask: MASK, or None.

    Raises:
        ValueError: There is nothing to edit by; says what to do.
    """
    text = text.strip()
    if conditioning is None and (clip is None or not text):
        raise ValueError(
            "An edit needs a text, and a CLIP that reads it: write what the picture should get or lose, and connect "
            "the CLIP of the model. Or connect a CONDITIONING."
        )
    if conditioning is not None and not conditioning:
        raise ValueError("CONDITIONING of the edit is empty: connect a CLIP Text Encode.")
    places = None
    if clip is not None and text:
        places = _places(clip.tokenize(text, return_word_ids=True))
        if conditioning is None:
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if isinstance(mask, torch.Tensor):
        with torch.inference_mode(False):
            mask = mask.detach().float().reshape(-1, *mask.shape[-2:]).clamp(0, 1).clone()
    return Wanted(edit, conditioning, text, places, mask)


def editing(guider: Any, edits: Sequence[Wanted]) -> tuple[Any, str]:
    """A GUIDER that edits.

    Args:
        guider: The GUIDER without edits; it is not changed.
        edits: What is changed.

    Returns:
        The GUIDER, and what it does in words.

    Raises:
        ValueError: This cannot be; says why and what to do.
    """
    from comfy.sampler_helpers import convert_cond

    check_conditioning(guider)
    if any(key.startswith(EDIT) for key in guider.original_conds):
        raise ValueError(
            "This GUIDER edits already: join the edits by edits of Edit, and connect the GUIDER without edits."
        )
    network = guider.model_patcher.model.diffusion_model
    keys = layers(network)
    _check_masks(edits, keys, guider.model_patcher)
    conds = {f"{EDIT}{n}": convert_cond(one.conditioning) for n, one in enumerate(edits)}
    _check_widths(guider.original_conds, conds)
    kind = type(guider)
    cls = type(f"Editing{kind.__name__}", (_Editing, kind), {})
    made: Any = object.__new__(cls)
    made.__dict__.update(guider.__dict__)
    made.original_conds = {**guider.original_conds, **conds}
    made._graft_edits, made._graft_layers = tuple(edits), keys
    return made, _describe(edits, keys)


class _Editing:
    """What a GUIDER gets: it comes before the class of the GUIDER that edits."""

    _graft_edits: tuple[Wanted, ...]
    _graft_layers: list[Key]

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """D, edited; where no edit acts it is the GUIDER's, bit for bit."""
        import comfy.samplers

        options = {} if model_options is None else model_options
        guider: Any = self
        base = super().predict_noise(x, timestep, options, seed)  # type: ignore[misc]
        acting = _acting(guider.conds, self._graft_edits, timestep, options)
        if not acting:
            return base
        check_latent(x, guider.inner_model)
        asked = [guider.conds[f"{EDIT}{number}"] for number, _ in acting]
        negative = _reference(guider)
        if negative is not None:
            asked.append(negative)
        maps = AttentionMaps(_words(self._graft_edits, asked, acting))
        if maps.words:
            options = maps.patched(options, self._graft_layers)
        found = comfy.samplers.calc_cond_batch(guider.inner_model, asked, x, timestep, options)
        reference = base if negative is None else found[-1]
        size = (x.shape[-2], x.shape[-1])
        parts = []
        for place, (number, weight) in enumerate(acting):
            one = self._graft_edits[number]
            attention = maps.of(place, size) if one.edit.needs_attention else None
            parts.append(Part(one.edit, weight, found[place], attention, one.mask))
        return edited(base, reference, parts)


def _acting(
    conds: dict[str, Any],
    edits: Sequence[Wanted],
    timestep: torch.Tensor,
    options: dict[str, Any],
) -> list[tuple[int, float]]:
    """The edits that act at a level, by number, with their weights."""
    sigma = float(timestep.max())
    sigmas = options.get("transformer_options", {}).get("sample_sigmas")
    progress = 0.0 if sigmas is None else Steps(sigmas.tolist()).at(sigma).progress
    weights = [(number, one.edit.weight(progress)) for number, one in enumerate(edits)]
    return [
        (number, weight)
        for number, weight in weights
        if weight and any(_is_in_range(cond, sigma) for cond in conds[f"{EDIT}{number}"])
    ]


def _is_in_range(cond: dict[str, Any], sigma: float) -> bool:
    """Whether the host asks with a conditioning at a level."""
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def _reference(guider: Any) -> Any:
    """The negative conditioning, which texts are compared with; None where D itself is that."""
    negative = guider.conds.get("negative")
    is_used = negative and not math.isclose(float(getattr(guider, "cfg", 0.0)), 1.0)
    return negative if is_used else None


def _words(
    edits: Sequence[Wanted], asked: Sequence[Any], acting: Sequence[tuple[int, float]]
) -> dict[int, Words]:
    found = {}
    for place, (number, _) in enumerate(acting):
        if edits[number].edit.needs_attention:
            length = int(asked[place][0]["model_conds"]["c_crossattn"].cond.shape[1])
            places = edits[number].places
            inside = None if places is None else tuple(p for p in places if p < length)
            found[place] = Words(inside or None, length)
    return found


def _places(tokens: Any) -> tuple[int, ...] | None:
    """Where the words of a text are among its tokens; those that the tokenizer puts around them have the word 0."""
    chunks = next(iter(tokens.values()), []) if isinstance(tokens, dict) else tokens
    found, start = [], 0
    for chunk in chunks:
        found += [start + place for place, token in enumerate(chunk) if len(token) > 2 and token[2]]
        start += len(chunk)
    return tuple(found) or None


def _check_masks(edits: Sequence[Wanted], keys: Sequence[Key], model: Any) -> None:
    if keys or not any(one.edit.needs_attention for one in edits):
        return
    raise ValueError(
        f"This MODEL ({type(model.model).__name__}) has no cross-attention layers of a UNet, of which masks by "
        f"attention are made: set mask of each Edit to {DIFFERENCE}, or to {NONE} with a MASK of your own."
    )


def _check_widths(known: dict[str, Any], edits: dict[str, Any]) -> None:
    """Texts of another CLIP than the model's."""
    widths = {c["cross_attn"].shape[-1] for conds in known.values() for c in conds if _has_text(c)}
    for number, conds in enumerate(edits.values(), 1):
        for cond in conds:
            width = cond["cross_attn"].shape[-1] if _has_text(cond) else None
            if width is not None and widths and width not in widths:
                raise ValueError(
                    f"The text of edit {number} has vectors of {width} numbers, and that of GUIDER "
                    f"{' or '.join(map(str, sorted(widths)))}: read both with the CLIP of the model."
                )


def _has_text(cond: dict[str, Any]) -> bool:
    return isinstance(cond.get("cross_attn"), torch.Tensor)


def _describe(edits: Sequence[Wanted], keys: Sequence[Key]) -> str:
    said = []
    for number, one in enumerate(edits, 1):
        edit = one.edit
        about = f" '{plain(one.text, 60)}'" if one.text else ""
        where = edit.mask if one.mask is None else f"{edit.mask}, within a MASK"
        said.append(
            f"{number}: {edit.direction}{about}, scale {edit.scale:g}, from {edit.start_percent:.0%} to "
            f"{edit.end_percent:.0%} of the steps, mask {where}"
        )
        if edit.mask != NONE:
            said[-1] += f" (threshold {edit.threshold:g})"
    if any(one.edit.needs_attention for one in edits):
        said.append(f"Attention is of {len(keys)} layers.")
    more = f"{len(edits)} more evaluation{'' if len(edits) == 1 else 's'} of the model a step"
    said.append(f"{more}, and one where cfg is not 1." if edits else "No edits.")
    return "\n".join(said)
