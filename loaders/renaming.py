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
from .alphas import Alphas
from .roles import ALPHA, DOWN, MAGNITUDE, MID, UP, split

_PEFT_MAGNITUDE = ".lora_magnitude_vector"
_KOHYA_OFT = "oft_unet_"


@dataclass(frozen=True)
class Name:
    """What a tensor of a file is.

    Attributes:
        layer: The layer's name that the host reads; empty where the model has none of it.
        role: What of the layer it is, see ``roles``.
    """

    layer: str
    role: str

    @property
    def key(self) -> str:
        """The tensor's name that the host reads."""
        return f"{self.layer}.{self.role}"


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
        By the file's name; a ``layer`` is empty where it has none here, and ``role`` where it is no adapter's tensor.

    Raises:
        ValueError: Two tensors are the same one of a layer.
    """
    found: dict[str, Name] = {}
    taken: dict[str, str] = {}
    layers: dict[str, str] = {}
    for key in names:
        spelled, role = split(key)
        if role and spelled not in layers:
            layers[spelled] = dialects.look_up(spelled, homes) or ""
        name = found[key] = Name(layers.get(spelled, "") if role else "", role)
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
    alphas = Alphas(metadata)
    by_layer: dict[str, dict[str, str]] = {}
    for key, name in names.items():
        host = name.key if name.layer else key
        made.tensors[host], made.origins[host] = tensors[key], key
        if name.layer:
            by_layer.setdefault(name.layer, {})[name.role] = key
    made.layers = list(by_layer)
    for layer, keys in by_layer.items():
        _check(layer, {role: tensors[key] for role, key in keys.items()})
        _complete(layer, keys, tensors, alphas, made)
        if ALPHA in keys and keys[ALPHA].startswith(_KOHYA_OFT) and "oft_blocks" in keys:
            # kohya's limit is alpha times the layer's outputs, the host's is alpha itself.
            blocks = tensors[keys["oft_blocks"]]
            made.tensors[f"{layer}.{ALPHA}"] = (
                tensors[keys[ALPHA]] * blocks.shape[0] * blocks.shape[1]
            )
    return made


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
    core, rank = parts.get(MID), len(down)
    if core is not None and (core.ndim < 3 or core.shape[:2] != (rank, rank)):
        raise ValueError(
            f"{layer}: lora_mid of shape {list(core.shape)} does not go with rank {rank}; the file is damaged."
        )
    alpha = parts.get(ALPHA)
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{layer}: alpha has the shape {list(alpha.shape)}, and is one number.")


def _complete(
    layer: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    alphas: Alphas,
    made: Renamed,
) -> None:
    """What the metadata say of alpha, and the shape of PEFT's magnitude: one number for each output."""
    spelled = split(next(iter(keys.values())))[0]
    missing = alphas.missing(spelled, {role: tensors[key] for role, key in keys.items()})
    made.tensors |= {f"{layer}.{role}": tensor for role, tensor in missing.items()}
    if _PEFT_MAGNITUDE in keys.get(MAGNITUDE, "") and DOWN in keys:
        scale, down = tensors[keys[MAGNITUDE]], tensors[keys[DOWN]]
        made.tensors[f"{layer}.{MAGNITUDE}"] = scale.reshape(-1, *(1,) * (down.ndim - 1))
