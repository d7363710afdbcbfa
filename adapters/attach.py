# SPDX-License-Identifier: Apache-2.0
"""Attach adapters to a model by replacing ``forward`` on the chosen modules, never the modules.

So the model's names stay the names we train, save and load by.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import nn

from .base import Layer, Network
from .dropout import Draws, Masks, Source
from .fused import Fetch, own


class Attached:
    """The layers of one network on one model. ``remove()`` restores every forward.

    Args:
        root: The model.
        network: Its settings.
        seed: Of what the layers begin with.
        device: Where they are.
        fetch: Gives weight and bias of a module as it uses them on an input; None where it cannot.
    """

    def __init__(
        self,
        root: nn.Module,
        network: Network,
        seed: int,
        device: torch.device | str = "cpu",
        fetch: Fetch = own,
    ) -> None:
        self.network = network
        self.enabled = True
        self.layers: dict[str, Layer] = {}
        self._removers: dict[str, Callable[[], None]] = {}
        self._source = Source()
        for name, settings in network.plan(network.targets(root)).items():
            digest = hashlib.blake2b(f"{seed}/adapter/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
            try:
                layer = settings.build(root.get_submodule(name), generator)
            except ValueError as error:
                self.remove()
                raise ValueError(f"{name}: {error}") from error
            layer.masks, layer.fetch = Masks(self._source, name), fetch
            self.layers[name] = layer.to(device)
        for name, layer in self.layers.items():
            self._removers[name] = layer.install(root.get_submodule(name), lambda: self.enabled)

    def remove(self) -> None:
        """Give every module its own forward back."""
        while self._removers:
            self._removers.popitem()[1]()

    def leave(self, names: Iterable[str]) -> None:
        """Give these modules their own forward back, and forget their layers."""
        for name in names:
            self._removers.pop(name)()
            del self.layers[name]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by ``<module>.<parameter>``."""
        return {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            for key, value in layer.named_parameters()
        }

    def settle(self, moved: Collection[str]) -> None:
        """Layers need nothing after a step."""

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The base model inside the block: adapters add nothing and cost nothing."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def draw(self, draws: Draws | None) -> None:
        """Drop out by these draws of a batch from now on; by none, nothing."""
        self._source.draws = draws

    def tensors(self, prefix: str = "diffusion_model.") -> dict[str, torch.Tensor]:
        """Copies of all layers' tensors under the names a file keeps, on the CPU."""
        with torch.inference_mode(False), torch.no_grad():
            return {
                f"{prefix}{name}.{key}": value.detach().to("cpu", copy=True)
                for name, layer in self.layers.items()
                for key, value in layer.tensors().items()
            }

    def take_alphas(
        self, tensors: Mapping[str, torch.Tensor], prefix: str = "diffusion_model."
    ) -> None:
        """Use the alphas that ``tensors`` gave: a run that began with a file has the file's."""
        for name, layer in self.layers.items():
            alpha = tensors.get(f"{prefix}{name}.alpha")
            if alpha is not None and alpha.numel() == 1:  # `load` refuses any other
                layer.take_alpha(float(alpha))

    def load(self, tensors: Mapping[str, torch.Tensor], prefix: str = "diffusion_model.") -> None:
        """Take over what ``tensors`` gave.

        Raises:
            ValueError: Keys of layers that are not attached, or absent or misshapen tensors.
        """
        grouped: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.layers}
        for key, value in tensors.items():
            owner = next(
                (name for name in _owners(key.removeprefix(prefix)) if name in grouped), None
            )
            if owner is None:
                raise ValueError(
                    f"The state trains {key}, which the present block selection does not."
                )
            grouped[owner][key.removeprefix(f"{prefix}{owner}.")] = value
        for name, group in grouped.items():
            try:
                _check_shapes(self.layers[name], group)
                self.layers[name].load(group)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def _check_shapes(layer: Layer, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, held in layer.tensors().items():
        came = tensors.get(key, held)
        if came.shape != held.shape:
            raise ValueError(f"{key}: expected shape {list(held.shape)}, got {list(came.shape)}.")


def _owners(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key
