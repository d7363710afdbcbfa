# SPDX-License-Identifier: Apache-2.0
"""What is in an adapter's file, whatever its dialect: tensors by layer and role, under generic names, none changed."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from ...adapters.bottleneck import is_bottleneck
from ...adapters.pair import Pair
from ...adapters.tokens import BUNDLE
from ..alphas import Alphas
from ..roles import ALPHA, DOWN, MAGNITUDE, MID, UP, down_names, split
from .names import Spelling, generic

# Kinds whose tensors are called alike everywhere, by how their names begin.
KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_blocks": "OFT",
    "rescale": "OFT",
    "diff": "full",
    "w_norm": "full",
    "b_norm": "full",
    "set_weight": "full",
    "reshape_weight": "LoRA",
    "a1.": "GLoRA",
    "a2.": "GLoRA",
    "b1.": "GLoRA",
    "b2.": "GLoRA",
}

Roles = dict[str, torch.Tensor]


@dataclass
class Content:
    """What a file holds.

    Attributes:
        layers: Tensors by role, by the layer's generic name; roles are called as in generic files.
        words: Bundled vectors of new words, by their names in the file.
        bottlenecks: Tensors of bottleneck adapters, likewise.
        unknown: Names that are none of these.
        doubled: Names of layers and roles that the file has a second time, under another name.
        kinds: How many layers have names of which kind, see ``names.generic``; with how they end.
    """

    layers: dict[str, Roles] = field(default_factory=dict)
    words: Roles = field(default_factory=dict)
    bottlenecks: Roles = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def tensors(self) -> Roles:
        """All of it by generic names, but what is unknown."""
        named = {
            f"{name}.{role}": tensor
            for name, roles in self.layers.items()
            for role, tensor in roles.items()
        }
        return named | self.words | self.bottlenecks

    def whats(self) -> Counter[str]:
        """How many layers are of which kind: LoRA, DoRA, LoHa and so on."""
        found = Counter(kind(roles) for roles in self.layers.values())
        return found + Counter({"bottleneck": len(self.bottlenecks)} if self.bottlenecks else {})

    def check(self) -> None:
        """Refuse it where the tensors of a low-rank layer do not go together.

        Raises:
            ValueError: Names the layer, and the shapes.
        """
        for name, roles in self.layers.items():
            if kind(roles) in ("LoRA", "DoRA"):
                check(name, roles)

    def dialect(self) -> str:
        """What the file's dialect is called, the commonest where it has several."""
        if not self.kinds:
            return (
                "ComfyUI generic" if self.bottlenecks else "bundled words" if self.words else "none"
            )
        said = Counter[str]()
        for each, count in self.kinds.items():
            said[_dialect(each)] += count
        return " and ".join(name for name, _ in said.most_common(2))


def read(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Content:
    """Sort a file's tensors by layer and role; none is changed, but PEFT's magnitudes have kohya's shape.

    Args:
        tensors: By the file's names.
        metadata: The file's, where diffusers keeps alphas.
        known: diffusers' names by the model's own modules, where the host knows them.

    Returns:
        All of them.

    Raises:
        ValueError: The metadata of diffusers cannot be read.
    """
    found = Content()
    spelling = Spelling(known, tensors)
    spelled: dict[str, str] = {}
    for key, tensor in tensors.items():
        if key.startswith(BUNDLE):
            found.words[key] = tensor
        elif is_bottleneck(key):
            found.bottlenecks[key] = tensor
        else:
            _take(found, key, tensor, spelling, tensors, spelled)
    alphas = Alphas(metadata or {})
    for layer, name in spelled.items():
        found.layers[layer] |= alphas.missing(name, found.layers[layer])
    return found


def kind(roles: Iterable[str]) -> str:
    """What a layer's tensors are, by their roles."""
    roles = list(roles)
    if MAGNITUDE in roles:
        return "DoRA"
    if UP in roles or DOWN in roles:
        return "LoRA"
    for start, name in KINDS.items():
        if any(role.startswith(start) for role in roles):
            return name
    return "nothing"


def check(name: str, roles: Mapping[str, torch.Tensor]) -> None:
    """Refuse a low-rank layer whose tensors do not go together.

    Args:
        name: The layer, for messages.
        roles: Its tensors.

    Raises:
        ValueError: It is not whole, its numbers are none, or up and down do not multiply.
    """
    half = next((role for role in (UP, DOWN) if role not in roles), None)
    if half:
        raise ValueError(f"{name} has no {half}: the file is not whole. Save or download it again.")
    up, down, core, alpha = roles[UP], roles[DOWN], roles.get(MID), roles.get(ALPHA)
    for tensor in (up, down):
        if tensor.ndim < 2 or not tensor.is_floating_point():
            raise ValueError(f"{name}: shape {list(tensor.shape)} of {tensor.dtype} is no LoRA's.")
    rank, columns = len(down), math.prod(up.shape[1:])
    if not rank or columns != rank:
        raise ValueError(
            f"{name}: up {list(up.shape)} has rank {columns} and down {list(down.shape)} rank {rank}, which do not "
            "multiply: the file is damaged, or of another kind."
        )
    if core is not None and (core.ndim < 3 or core.shape[:2] != (rank, rank)):
        raise ValueError(f"{name}: {MID} {list(core.shape)} does not go with rank {rank}.")
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{name}: alpha has shape {list(alpha.shape)}; it must be one number.")


def pair(name: str, roles: Mapping[str, torch.Tensor]) -> Pair:
    """The low-rank change of one layer; of a DoRA, that of V.

    Args:
        name: The layer, for messages.
        roles: Its tensors.

    Returns:
        The factors in fp32, a core folded into the down one.

    Raises:
        ValueError: As ``check``.
    """
    check(name, roles)
    up, down = (roles[role].detach().to("cpu", torch.float32).flatten(1) for role in (UP, DOWN))
    if MID in roles:
        down = torch.einsum("mns,ni->mis", roles[MID].to(torch.float32).flatten(2), down).flatten(1)
    alpha = roles.get(ALPHA)
    return Pair(down, up, float(len(down) if alpha is None else alpha))


def _take(
    found: Content,
    key: str,
    tensor: torch.Tensor,
    spelling: Spelling,
    all_: Mapping[str, torch.Tensor],
    spelled: dict[str, str],
) -> None:
    name, role = split(key)
    if not role:
        found.unknown.append(key)
        return
    down = next((all_[d] for d in down_names(name) if d in all_), tensor)
    layer, how = generic(name, spelling, _width(down))
    roles = found.layers.setdefault(layer, {})
    spelled.setdefault(layer, name)
    if role in roles:
        found.doubled.append(key)
        return
    if (
        role == MAGNITUDE and "lora_magnitude_vector" in key
    ):  # PEFT: [out], of convolutions [1, out, 1, 1]
        tensor = tensor.reshape(-1, *(1,) * (max(tensor.ndim, 2) - 1))
    roles[role] = tensor
    if role not in (ALPHA, MAGNITUDE, UP):
        ends = (
            "peft"
            if ".lora_A" in key
            else "old"
            if ".lora.down" in key or "_lora.down" in key
            else "kohya"
        )
        found.kinds[f"{how} {ends}"] += 1


def _width(tensor: torch.Tensor) -> int:
    return int(tensor.shape[1]) if tensor.ndim > 1 else 0


def _dialect(kind_of: str) -> str:
    root, modules, ends = kind_of.split()
    if ends == "old":
        return "diffusers (old)"
    if ends == "peft":
        return {"unet": "diffusers", "peft": "PEFT", "bare": "PEFT"}.get(
            root, "ComfyUI generic, PEFT's ends"
        )
    if root == "flat":
        return "kohya (diffusers names)" if modules == "theirs" else "kohya"
    return "ComfyUI generic" if root == "generic" else "diffusers names, kohya's ends"
