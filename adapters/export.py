# SPDX-License-Identifier: Apache-2.0
"""What a training keeps, as ComfyUI's own loader applies it exactly.

LoRA, LoHa, LoKr, OFT and BOFT are kept as the loader reads them. DoRA and (IA)^3 become its DoRA, ``dora_scale``. It
scales the columns of V = W0 + dW by dora_scale / |V|, but rows, up to the version of today, by dora_scale / |W0|. So
the scale of a DoRA is written as m |W0| / |V| for a loader that divides by |W0|, and as m for one that divides by |V|;
(IA)^3 has dW = 0, with which both are the same.
"""

from collections.abc import Callable, Mapping

import torch

Weight = Callable[[str], torch.Tensor]
_MAGNITUDE, _OUTPUT, _INPUT = ".lora_magnitude_vector", ".ia3_output", ".ia3_input"
MARKS = (_MAGNITUDE, _OUTPUT, _INPUT)


def exported(
    tensors: Mapping[str, torch.Tensor], weight: Weight, divides_by_base: bool
) -> dict[str, torch.Tensor]:
    """Tensors for files and for LORA_MODEL.

    Args:
        tensors: What ``Attached.tensors`` gave.
        weight: Gives the weight ``[out, in, *kernel]``, or the bias, that a parameter's name stands for; a bias that
            there is not is empty.
        divides_by_base: Whether the loader divides rows by |W0|.

    Returns:
        The same, but for what the loader has no name for.
    """
    made = {key: tensor for key, tensor in tensors.items() if not key.endswith(MARKS)}
    for key, tensor in tensors.items():
        if key.endswith(_MAGNITUDE):
            name = key.removesuffix(_MAGNITUDE)
            parts = {part: tensors[f"{name}.{part}"] for part in _PARTS}
            base = weight(f"{name}.weight")
            made[f"{name}.dora_scale"] = _dora(tensor, parts, base, divides_by_base)
        elif key.endswith(_OUTPUT):
            name = key.removesuffix(_OUTPUT)
            made |= _scaled(name, tensor, weight(f"{name}.weight"), 0)
            bias = weight(f"{name}.bias")
            if bias.numel():
                made[f"{name}.diff_b"] = tensor * bias.float()
        elif key.endswith(_INPUT):
            name = key.removesuffix(_INPUT)
            made |= _scaled(name, tensor, weight(f"{name}.weight"), 1)
    return made


_PARTS = ("lora_up.weight", "lora_down.weight", "alpha")


def _dora(
    magnitude: torch.Tensor,
    parts: Mapping[str, torch.Tensor],
    base: torch.Tensor,
    divides_by_base: bool,
) -> torch.Tensor:
    """``[out, 1, ...]`` fp32."""
    shape = (-1, *(1,) * (base.ndim - 1))
    if not divides_by_base:
        return magnitude.reshape(shape).clone()
    up, down, alpha = (parts[part] for part in _PARTS)
    rows = base.to(torch.float32).flatten(1)
    change = up.to(rows).flatten(1) @ down.to(rows).flatten(1)
    norms = (rows + float(alpha) / len(down) * change).norm(dim=1)
    # Its own guard against rows of 0 is part of what it divides by.
    kept = rows.norm(dim=1) + torch.finfo(torch.float32).eps
    scale = torch.where(norms > 0, magnitude.to(rows) / norms.clamp(min=1e-12), 1.0) * kept
    return scale.cpu().reshape(shape)


def _scaled(
    name: str, change: torch.Tensor, base: torch.Tensor, axis: int
) -> dict[str, torch.Tensor]:
    """A DoRA whose dW is 0: (1 + change) |W0| over ``axis``, and a LoRA of rank 1 of zeros."""
    weight = base.to(torch.float32)
    norms = weight.transpose(0, axis).flatten(1).norm(dim=1).cpu()
    norms = norms + torch.finfo(torch.float32).eps
    shape = [1] * base.ndim
    shape[axis] = -1
    return {
        f"{name}.dora_scale": ((1 + change) * norms).reshape(shape),
        f"{name}.lora_up.weight": torch.zeros(base.shape[0], 1, *(1,) * (base.ndim - 2)),
        f"{name}.lora_down.weight": torch.zeros(1, *base.shape[1:]),
        f"{name}.alpha": torch.tensor(1.0),
    }
