# SPDX-License-Identifier: Apache-2.0
"""An adapter in the dialect that another program reads. What a dialect cannot hold is refused by name, or told.

Tensors are written as they are, bit for bit, but for a DoRA's magnitude, whose shape differs (kohya ``[out, 1, ...]``;
PEFT ``[out]``, of convolutions ``[1, out, 1, 1]``), and PEFT's alpha, which its files have no place for: where it is
not the rank it is multiplied into ``up``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...adapters.learned import TEXT
from ..alphas import CONFIG
from ..roles import ALPHA, DOWN, MAGNITUDE, MID, UP
from . import names
from .content import Content, Roles, kind
from .magnitudes import BY_BASE, FACT

COMFYUI, KOHYA, KOHYA_DIFFUSERS = "ComfyUI generic", "kohya", "kohya (diffusers names)"
DIFFUSERS, PEFT = "diffusers", "PEFT"
DIALECTS = (COMFYUI, KOHYA, KOHYA_DIFFUSERS, DIFFUSERS, PEFT)
_PEFT_ENDS = {UP: "lora_B.weight", DOWN: "lora_A.weight", MAGNITUDE: "lora_magnitude_vector"}
_LISTED = 3


@dataclass
class Written:
    """Tensors and metadata of a file, and what the dialect made of the adapter, as sentences."""

    tensors: Roles
    metadata: dict[str, str]
    notes: list[str] = field(default_factory=list)


def write(
    content: Content,
    metadata: Mapping[str, str],
    dialect: str,
    known: Mapping[str, str] | None = None,
) -> Written:
    """Spell an adapter in a dialect.

    Args:
        content: What was read.
        metadata: Of the file; kept, but for diffusers' own settings, which are made anew.
        dialect: One of ``DIALECTS``.
        known: diffusers' names by the model's own modules, where the host knows them.

    Returns:
        The tensors, their metadata, and what is to be told.

    Raises:
        ValueError: The dialect has no place for a part of the adapter; names it.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"There is no dialect '{dialect}'; there are {', '.join(DIALECTS)}.")
    kept = {key: value for key, value in metadata.items() if key != CONFIG}
    if dialect in (DIFFUSERS, PEFT):
        return _as_peft(content, kept, dialect, names.Spelling(known, content.layers))
    if dialect == COMFYUI:
        return Written(content.tensors(), kept)
    if content.bottlenecks:
        raise ValueError(
            f"{dialect} has no bottleneck adapters, which this adapter has: choose {COMFYUI}."
        )
    spelling = names.Spelling(known, content.layers) if dialect == KOHYA_DIFFUSERS else None
    has_two = _has_two(content.layers)
    named = {name: names.kohya(name, spelling, has_two) for name in content.layers}
    _check_named(named, dialect)
    tensors = {
        f"{named[name]}.{role}": t
        for name, roles in content.layers.items()
        for role, t in roles.items()
    }
    if len(tensors) < sum(map(len, content.layers.values())):
        raise ValueError(f"Two layers of the adapter have one name in {dialect}: choose {COMFYUI}.")
    return Written(tensors | content.words, kept)


def _as_peft(
    content: Content, metadata: Mapping[str, str], dialect: str, spelling: names.Spelling
) -> Written:
    _check_kinds(content, metadata, dialect)
    layers = content.layers
    notes = []
    if content.words:
        count = len(content.words)
        notes.append(
            f"{count} vectors of new words are left out: {dialect} keeps them in files of their own"
        )
    if dialect == PEFT:
        text = [name for name in layers if name.startswith(TEXT)]
        layers = {name: roles for name, roles in layers.items() if name not in text}
        if text:
            if not layers:
                raise ValueError(
                    "A PEFT file is of one model, and this adapter has text encoders only."
                )
            notes.append(
                f"{len(text)} layers of text encoders are left out: a PEFT file is of one model"
            )
    named = {name: names.diffusers(name, spelling) for name in layers}
    _check_named(named, dialect)
    made: Roles = {}
    folded = 0
    for name, roles in layers.items():
        start = named[name] or ""
        if dialect == PEFT:
            start = f"base_model.model.{start.removeprefix('unet.')}"
            roles, is_folded = _folded(roles)
            folded += is_folded
        made |= {
            f"{start}.{_PEFT_ENDS[r]}": _shaped(r, t, roles) for r, t in roles.items() if r != ALPHA
        }
    if folded:
        notes.append(
            f"alpha / rank is multiplied into lora_B of {folded} layers: PEFT's file has no alpha"
        )
    settings = dict(metadata)
    if dialect == DIFFUSERS and any(ALPHA in roles for roles in layers.values()):
        settings[CONFIG] = json.dumps(_config(layers, named), sort_keys=True)
        if any(_alpha(r) != len(r[DOWN]) for r in layers.values()):
            notes.append(
                "alpha is in the metadata, as diffusers keeps it; ComfyUI's Load LoRA does not read it there"
            )
    return Written(made, settings, notes)


def _check_kinds(content: Content, metadata: Mapping[str, str], dialect: str) -> None:
    others = {
        name: kind(roles)
        for name, roles in content.layers.items()
        if kind(roles) not in ("LoRA", "DoRA")
    }
    others |= dict.fromkeys(content.bottlenecks, "bottleneck adapter")
    for name, roles in content.layers.items():
        if name in others:
            continue
        if MID in roles:
            others[name] = "LoCon with a core (lora_mid)"
        elif extra := roles.keys() - {UP, DOWN, ALPHA, MAGNITUDE}:
            others[name] = sorted(extra)[0]
        elif not {UP, DOWN} <= roles.keys():
            raise ValueError(f"{name} has only one half of its LoRA: the file is not whole.")
        elif MAGNITUDE in roles and roles[MAGNITUDE].numel() != roles[UP].shape[0]:
            others[name] = "DoRA by columns"
    if others:
        counted = ", ".join(f"{n} x {what}" for what, n in Counter(others.values()).items())
        raise ValueError(
            f"{dialect} has no place for {counted}, for example {next(iter(others))}: choose {COMFYUI}, or a rank, "
            "with which LoHa, LoKr and full differences become a LoRA."
        )
    if metadata.get(FACT) == BY_BASE and "DoRA" in content.whats():
        raise ValueError(
            f"The magnitudes of this DoRA are written for ComfyUI ({BY_BASE}): connect the model that it was trained "
            f"on, from which the magnitudes themselves are found again, or choose {COMFYUI}."
        )


def _check_named(named: Mapping[str, str | None], dialect: str) -> None:
    lost = [name for name, other in named.items() if other is None]
    if lost:
        raise ValueError(
            f"{dialect} has no name for {len(lost)} of the {len(named)} layers, for example "
            f"{', '.join(lost[:_LISTED])}: choose {COMFYUI}."
        )


def _has_two(layers: Iterable[str]) -> bool:
    """Whether the model has two text encoders, as SDXL has."""
    listed = list(layers)
    return any(
        f"{TEXT}clip_g." in name or ".transformer_blocks.1." in name for name in listed
    ) or any(name.startswith("diffusion_model.label_emb") for name in listed)


def _folded(roles: Roles) -> tuple[Roles, bool]:
    scale = _alpha(roles) / len(roles[DOWN])
    if scale == 1.0:
        return roles, False
    return roles | {UP: (roles[UP].float() * scale).to(roles[UP].dtype)}, True


def _alpha(roles: Roles) -> float:
    return float(roles[ALPHA]) if ALPHA in roles else float(len(roles[DOWN]))


def _shaped(role: str, tensor: torch.Tensor, roles: Roles) -> torch.Tensor:
    if role != MAGNITUDE:
        return tensor
    return tensor.reshape(1, -1, 1, 1) if roles[DOWN].ndim == 4 else tensor.reshape(-1)


def _config(layers: Mapping[str, Roles], named: Mapping[str, str | None]) -> dict[str, Any]:
    """PEFT's settings of each part of a pipeline, as diffusers keeps them."""
    parts: dict[str, dict[str, Roles]] = {}
    for name, roles in layers.items():
        component, _, module = (named[name] or "").partition(".")
        parts.setdefault(component, {})[module] = roles
    found: dict[str, Any] = {}
    for component, modules in parts.items():
        ranks = {module: len(roles[DOWN]) for module, roles in modules.items()}
        alphas = {module: _number(_alpha(roles)) for module, roles in modules.items()}
        rank, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
        found |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": alpha,
            f"{component}.rank_pattern": {m: r for m, r in ranks.items() if r != rank},
            f"{component}.alpha_pattern": {m: a for m, a in alphas.items() if a != alpha},
            f"{component}.target_modules": sorted(modules),
            f"{component}.use_dora": any(MAGNITUDE in roles for roles in modules.values()),
        }
    return found


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value
