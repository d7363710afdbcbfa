# SPDX-License-Identifier: Apache-2.0
"""LoRA files of every dialect as one change a layer, under the names of the model's own modules.

What a name stands for is asked of ``places``: the host's map from the names that its loader takes to the model's
weights. Names that the host's map lacks (PEFT's, diffusers' newer ones, doubled prefixes) are spelled as it has them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from ..adapters.pair import Pair
from .alphas import ENCODERS, Alphas
from .roles import ALPHA, DOWN, MAGNITUDE, MID, OF_LORA, UP, split

T = TypeVar("T")
_TEXT = ("lora_te", "lora_prior_te", "text_encoder", "text_model", "te1_", "te2_", "clip_", "t5xxl")
_DIFFERENCES = (".diff", ".diff_b")  # of biases and norms, mostly: core's trainer writes them, too
_WRAPPERS = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "unet.",
    "transformer.",
)


@dataclass(frozen=True)
class Place:
    """What a name in a file stands for.

    Attributes:
        module: Name of the module in the model.
        shape: Rows and columns of its flattened weight; None when it is no linear layer or convolution.
        offset: (axis, first, count) when the name stands for a part of the weight.
        function: What is done to the change before it is added: a permutation of its rows.
    """

    module: str
    shape: tuple[int, int] | None
    offset: tuple[int, int, int] | None = None
    function: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass
class Reading:
    """What a file holds for a model.

    Attributes:
        pairs: The changes by the module's name.
        text: Names of text encoders' layers.
        homeless: Names that the model has no layer for.
        misshapen: Names whose layer has another shape, with both.
        other: Tensors that are no part of a plain LoRA of a linear layer or convolution.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def is_lora(names: Iterable[str]) -> bool:
    """Whether some of these names of tensors are those of a LoRA."""
    return any(split(name)[1] in (UP, DOWN) for name in names)


def is_text(name: str) -> bool:
    """Whether a name in a file is a text encoder's, as far as the name tells."""
    return name.startswith(_TEXT)


def layers(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Names of a LoRA's tensors by layer and by what they are for it, see ``roles``.

    Args:
        names: Of all tensors.

    Returns:
        Names by role by layer.

    Raises:
        ValueError: A layer has a tensor twice.
    """
    return _grouped(names)[0]


def read(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], places: Mapping[str, Place]
) -> Reading:
    """Find the changes that a LoRA makes to a model.

    Args:
        tensors: Tensors by the file's names.
        metadata: The file's metadata, where diffusers keeps alphas.
        places: What the names before ``.lora_up.weight`` and the like stand for.

    Returns:
        Changes by module, and what has no place among them.

    Raises:
        ValueError: A layer is there twice or in half, or its numbers cannot be a LoRA's.
    """
    layers, other = _grouped(tensors)
    alphas = Alphas(metadata)
    found = Reading()
    for key in other:
        if key.startswith(_TEXT):
            found.text.append(key)
        elif not (key.endswith(_DIFFERENCES) and not bool(tensors[key].float().any())):
            found.other.append(key)
    parts: dict[str, dict[Any, Pair]] = {}
    for name, keys in layers.items():
        place = look_up(name, places)
        if place is None and name.startswith(_TEXT):
            found.text.append(name)
        elif MAGNITUDE in keys or not {UP, DOWN} & set(keys):
            found.other += keys.values()
        elif place is None:
            found.homeless.append(name)
        elif place.shape is None:
            found.other += keys.values()
        else:
            pair = _pair(name, {role: tensors[key] for role, key in keys.items()}, alphas)
            if _shape(pair) != _part(place):
                found.misshapen.append(f"{name} {_shape(pair)} for {_part(place)}")
                continue
            spans = parts.setdefault(place.module, {})
            if place.offset in spans:
                raise ValueError(
                    f"The file has layer {place.module} twice, the second time as {name}; it may hold several LoRAs."
                )
            spans[place.offset] = _placed(pair, place)
    found.pairs = {module: _joined(list(spans.values())) for module, spans in parts.items()}
    return found


def _grouped(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Names of tensors by layer and role, and those that are no LoRA's."""
    layers: dict[str, dict[str, str]] = {}
    other = []
    for key in names:
        name, role = split(key)
        if role not in OF_LORA:
            other.append(key)
            continue
        keys = layers.setdefault(name, {})
        if role in keys:
            raise ValueError(f"The file has the tensor {key} twice: the other is {keys[role]}.")
        keys[role] = key
    return layers, other


def look_up(name: str, places: Mapping[str, T]) -> T | None:
    """What a layer's name in a file stands for, in whichever spelling ``places`` has it; None where it has none."""
    return next((places[spelled] for spelled in _spellings(name) if spelled in places), None)


def _spellings(name: str) -> Iterator[str]:
    """Ways in which the host's map may have a name, the file's own first."""
    yield name
    if name.startswith("oft_unet_"):  # kohya's OFT
        yield f"lora_unet_{name.removeprefix('oft_unet_')}"
    if name.startswith(
        "lora_"
    ):  # diffusers' converter to kohya leaves dots in the names of magnitudes
        name = name.replace(".", "_")
        yield name
        yield name.replace("_encoder_layers_", "_text_model_encoder_layers_")
        return
    component, _, rest = name.partition(".")
    component, rest = (component, rest) if component in ENCODERS else ("", name)
    bare = rest
    while any(bare.startswith(wrapper) for wrapper in _WRAPPERS):
        bare = next(bare.removeprefix(w) for w in _WRAPPERS if bare.startswith(w))
    if component or bare.startswith(("text_model.", "encoder.layers.")):
        yield from _of_text(component or ENCODERS[0], bare)
        return
    bare = bare.replace(".processor.", ".")
    for spelled in (bare, f"{bare}.0") if bare.endswith(".to_out") else (bare,):
        flat = spelled.replace(".", "_")
        yield f"diffusion_model.{spelled}"
        yield f"transformer.{spelled}"
        yield f"lora_unet_{flat}"
        yield f"lora_transformer_{flat}"
        yield f"lycoris_{flat}"
        yield spelled


def _of_text(component: str, name: str) -> Iterator[str]:
    """A text encoder's layer; newer transformers leave out ``text_model``."""
    name = name.removeprefix("text_model.")
    yield f"{component}.text_model.{name}"
    yield f"{component}.{name}"
    number = "2" if component.endswith("2") else "1"
    yield f"lora_te{number}_text_model_{name.replace('.', '_')}"
    yield f"lora_te{number}_{name.replace('.', '_')}"


def _pair(name: str, tensors: Mapping[str, torch.Tensor], alphas: Alphas) -> Pair:
    if not {UP, DOWN} <= set(tensors):
        raise ValueError(f"{name} has only one half of its LoRA: the file is not whole.")
    up, down = (_matrix(name, tensors[role]) for role in (UP, DOWN))
    rank = down.shape[0]
    if MID in tensors:  # LoCon with a core: fold it into down, as the host does
        core = tensors[MID].to(torch.float32)
        if core.ndim < 3 or core.shape[:2] != (rank, rank) or not bool(torch.isfinite(core).all()):
            raise ValueError(
                f"{name}: lora_mid of shape {list(core.shape)} does not go with rank {rank}."
            )
        down = torch.einsum("mns,ni->mis", core.flatten(2), down).flatten(1)
    if not rank or up.shape[1] != rank:
        raise ValueError(
            f"{name}: up of shape {list(tensors[UP].shape)} and down of shape {list(tensors[DOWN].shape)} do "
            "not multiply; the file is damaged or of another kind."
        )
    return Pair(down, up, alphas.of(name, tensors.get(ALPHA), rank))


def _matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        raise ValueError(f"{name}: shape {list(tensor.shape)} of {tensor.dtype} is no LoRA's.")
    matrix = tensor.detach().to("cpu", torch.float32).flatten(1)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} has values that are not finite numbers: the LoRA is broken.")
    return matrix


def _shape(pair: Pair) -> tuple[int, int]:
    return int(pair.up.shape[0]), int(pair.down.shape[1])


def _part(place: Place) -> tuple[int, int]:
    """Rows and columns of what the name stands for; none where the weight has no such part."""
    sides = list(place.shape or (0, 0))
    if place.offset is not None:
        axis, first, count = place.offset
        if axis > 1 or first + count > sides[axis]:
            return 0, 0
        sides[axis] = count
    return sides[0], sides[1]


def _placed(pair: Pair, place: Place) -> Pair:
    """The change of the whole weight: zeros around a part."""
    down, up = pair.down, pair.up
    if place.function is not None:
        up = place.function(up)
    if place.offset is not None and place.shape is not None:
        axis, first, count = place.offset
        if axis == 0:
            whole = up.new_zeros(place.shape[0], up.shape[1])
            whole[first : first + count] = up
            up = whole
        else:
            whole = down.new_zeros(down.shape[0], place.shape[1])
            whole[:, first : first + count] = down
            down = whole
    return Pair(down, up, pair.alpha)


def _joined(pairs: list[Pair]) -> Pair:
    """The sum of changes of one weight, exactly: their ranks add up."""
    if len(pairs) == 1:
        return pairs[0]
    down = torch.cat([pair.down for pair in pairs])
    up = torch.cat([pair.up * pair.scale for pair in pairs], dim=1)
    return Pair(down, up, float(down.shape[0]))
