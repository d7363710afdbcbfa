# SPDX-License-Identifier: Apache-2.0
"""The weights of a MODEL as it runs: those on the wire with their patches, one at a time, on the managed device."""

from collections.abc import Callable
from typing import Any

import torch

from ...adapters.learned import MODEL


def patched(entry: Any, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """A weight with its patches, fp32, as a copy.

    Args:
        entry: What ``get_key_patches`` has for it.
        name: Its name.
        device: Where it is computed.
    """
    import comfy.lora

    (weight, convert), *patches = entry
    weight = weight.dequantize() if type(weight).__name__ == "QuantizedTensor" else weight
    plain = convert(weight.detach().to(device, torch.float32, copy=True), inplace=True)
    made: torch.Tensor = comfy.lora.calculate_weight(patches, plain, name)
    return made


def weight_of(model: Any, key: str) -> torch.Tensor:
    """A weight of a MODEL with the patches of the wire, fp64 on the CPU.

    Args:
        model: The host's ModelPatcher.
        key: Name of the weight, with the host's own before it.
    """
    return patched(model.get_key_patches(key)[key], key).double()


class PatchedWeights:
    """The weights of a MODEL's diffusion model with its patches applied; the MODEL is not changed, nor loaded.

    Args:
        model: The host's ModelPatcher.
        device: Where they are computed; the host's where it is None.
    """

    def __init__(self, model: Any, device: torch.device | None = None) -> None:
        import comfy.model_management

        self._patches: dict[str, Any] = model.get_key_patches(MODEL)
        self._device = device or comfy.model_management.get_torch_device()

    @property
    def names(self) -> list[str]:
        """Names of all of them, with the host's own before them."""
        return list(self._patches)

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape."""
        return tuple(self._patches[name][0][0].shape)

    def is_same(self, name: str, other: "PatchedWeights") -> bool:
        """Whether this weight is the same object without patches in both, so that it need not be looked at."""
        (mine, _), *patches = self._patches[name]
        (theirs, _), *more = other._patches[name]
        return mine is theirs and not patches and not more

    def get(self, name: str) -> torch.Tensor:
        """A weight ``[out, in, ...]`` fp32 on the device.

        Args:
            name: With the host's own before it.
        """
        return patched(self._patches[name], name, self._device)

    def layer(self) -> Callable[[str], torch.Tensor]:
        """A function that gives the weight of a layer by its generic name.

        Raises:
            ValueError: When the MODEL has no such layer.
        """

        def weight(layer: str) -> torch.Tensor:
            if f"{layer}.weight" not in self._patches:
                raise ValueError(
                    f"The MODEL has no layer {layer}: connect the one that it was trained on."
                )
            return self.get(f"{layer}.weight")

        return weight
