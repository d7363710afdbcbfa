# SPDX-License-Identifier: Apache-2.0
"""The tensors of an adapter's file under names that the host's loader reads, whatever program wrote them.

The host reads every kind of adapter (LoRA, LoHa, LoKr, OFT, GLoRA, differences), each under a few names of the layer.
Here the layer's name is looked up in all spellings, the ends of LoRA names become kohya's, and what the host reads
elsewhere than the file has it is put where it reads it: PEFT's alphas of the metadata, its magnitudes of a DoRA.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from . import dialects

UP, DOWN, MID, ALPHA, SCALE = (
    ".lora_up.weight",
    ".lora_down.weight",
    ".lora_mid.weight",
    ".alpha",
    ".dora_scale",
)
_BY_ROLE = {"up": UP, "down": DOWN, "mid": MID, "alpha": ALPHA, "magnitude": SCALE}
# What the host reads of other kinds than LoRA, at the end of a name.
_ENDS = (
    *(f".hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f".lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")),
    ".oft_blocks",
    ".rescale",
    *(f".{part}.weight" for part in ("a1", "a2", "b1", "b2")),
    ".diff",
    ".diff_b",
    ".w_norm",
    ".b_norm",
    ".set_weight",
    ".reshape_weight",
)
_MAGNITUDE = ".lora_magnitude_vector"
_KOHYA_OFT = "oft_unet_"


@dataclass(frozen=True)
class Name:
    """What a tensor of a file is.

    Attributes:
        layer: The layer's name that the host reads; empty where the model has none of it.
        end: What of the layer it is, as the host has it.
    """

    layer: str
    end: str

    @property
    def key(self) -> str:
        """The tensor's name that the host reads."""
        return f"{self.layer}{self.end}"


@dataclass
class Renamed:
    """Tensors by the host's names.

    Attributes:
        tensors: What the host reads, and under its own name what it does not.
        layers: The host's names of the layers.
        origins: The file's name of each tensor that is the file's own.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)


def find(names: Iterable[str], homes: Mapping[str, str]) -> dict[str, Name]:
    """Find out what each tensor of a file is; no tensor is needed for it.

    Args:
        names: The file's names of tensors.
        homes: For every name of a layer that the host reads, the one to use.

    Returns:
        By the file's name; a ``layer`` is empty where it has none here, and ``end`` where it is no adapter's tensor.

    Raises:
        ValueError: Two tensors are the same one of a layer.
    """
    found: dict[str, Name] = {}
    taken: dict[str, str] = {}
    layers: dict[str, str] = {}
    for key in names:
        spelled, end = split(key)
        if end and spelled not in layers:
            layers[spelled] = dialects.look_up(spelled, homes) or ""
        name = found[key] = Name(layers.get(spelled, "") if end else "", end)
        if name.layer and taken.setdefault(name.key, key) != key:
            raise ValueError(
                f"The file has a tensor of layer {name.layer} twice, as {taken[name.key]} and as {key}; it may hold "
                "several LoRAs."
            )
    return found


def rename(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], homes: Mapping[str, str]
) -> Renamed:
    """Put a file's tensors under the names, and into the shapes, that the host reads.

    Args:
        tensors: Tensors by the file's names.
        metadata: The file's metadata, where PEFT's alphas are.
        homes: As for ``find``.

    Returns:
        The tensors, with alphas that the host does not find by itself.

    Raises:
        ValueError: A LoRA has one half only, halves that do not multiply, or a tensor is there twice.
    """
    names = find(tensors, homes)
    made = Renamed()
    alphas = dialects.Alphas(metadata)
    by_layer: dict[str, dict[str, str]] = {}
    for key, name in names.items():
        host = name.key if name.layer else key
        made.tensors[host], made.origins[host] = tensors[key], key
        if name.layer:
            by_layer.setdefault(name.layer, {})[name.end] = key
    made.layers = list(by_layer)
    for layer, ends in by_layer.items():
        _check(layer, {end: tensors[key] for end, key in ends.items()})
        if DOWN in ends:
            _complete(layer, ends, tensors, alphas, made)
        if ALPHA in ends and ends[ALPHA].startswith(_KOHYA_OFT) and ".oft_blocks" in ends:
            # kohya's limit is alpha times the layer's outputs, the host's is alpha itself.
            blocks = tensors[ends[".oft_blocks"]]
            made.tensors[f"{layer}{ALPHA}"] = (
                tensors[ends[ALPHA]] * blocks.shape[0] * blocks.shape[1]
            )
    return made


def split(key: str) -> tuple[str, str]:
    """The layer's name in the file and what of it a tensor is, as the host has it; an empty end for other tensors."""
    name, role = dialects.part_of(key)
    if role:
        return name, _BY_ROLE[role]
    for end in _ENDS:
        if key.endswith(end):
            return key.removesuffix(end), end
    return key, ""


def _check(layer: str, parts: Mapping[str, torch.Tensor]) -> None:
    """Whether the halves of a LoRA are both there and multiply."""
    if (UP in parts) != (DOWN in parts):
        raise ValueError(f"{layer} has only one half of its LoRA: the file is not whole.")
    if UP not in parts:
        return
    up, down = parts[UP], parts[DOWN]
    if up.ndim < 2 or down.ndim < 2 or not down.shape[0] or up[0].numel() != down.shape[0]:
        raise ValueError(
            f"{layer}: up of shape {list(up.shape)} and down of shape {list(down.shape)} do not multiply, their ranks "
            "differ; the file is damaged or of another kind."
        )
    alpha = parts.get(ALPHA)
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{layer}: alpha has the shape {list(alpha.shape)}, and is one number.")


def _complete(
    layer: str,
    ends: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    alphas: dialects.Alphas,
    made: Renamed,
) -> None:
    """Alpha from the metadata, and the shape of PEFT's magnitude: one number for each output."""
    down = tensors[ends[DOWN]]
    if ALPHA not in ends:
        spelled = split(ends[DOWN])[0]
        alpha, rank = alphas.of(spelled, None, down.shape[0]), down.shape[0]
        if alpha != rank:
            made.tensors[f"{layer}{ALPHA}"] = torch.tensor(alpha)
    if _MAGNITUDE in ends.get(SCALE, ""):
        scale = tensors[ends[SCALE]]
        made.tensors[f"{layer}{SCALE}"] = scale.reshape(-1, *(1,) * (down.ndim - 1))
