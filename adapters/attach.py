# SPDX-License-Identifier: Apache-2.0
"""Attach adapters to a model by replacing ``forward`` on the chosen modules, never the modules.

So the model's names stay the names we train, save and load by.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .base import Layer, Network
from .targets import targets
from .tokens import BUNDLE, TokenVectors


class Attached:
    """The layers of one network on one model, and what is learned beside them. ``remove()`` restores every forward.

    Attributes:
        tokens: Vectors of new words that are trained along; None where there are none.
    """

    def __init__(
        self, root: nn.Module, network: Network, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.network = network
        self.enabled = True
        self.layers: dict[str, Layer] = {}
        self.tokens: TokenVectors | None = None
        self._modules: list[nn.Module] = []
        for name in targets(root, network.blocks):
            digest = hashlib.blake2b(f"{seed}/adapter/{name}".encode(), digest_size=8).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
            try:
                layer = network.build(root.get_submodule(name), generator)
            except ValueError as error:
                self.remove()
                raise ValueError(f"{name}: {error}") from error
            self.layers[name] = layer.to(device)
        for name, layer in self.layers.items():
            self._install(root.get_submodule(name), layer)

    def _install(self, module: nn.Module, layer: Layer) -> None:
        if "forward" in module.__dict__:
            raise RuntimeError(
                "Another adapter is attached to this model already; remove it first."
            )
        module.forward = _adapted(self, module.forward, layer)  # type: ignore[method-assign]
        self._modules.append(module)

    def remove(self) -> None:
        """Give every module its own forward back."""
        while self._modules:
            self._modules.pop().__dict__.pop("forward", None)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by ``<module>.<parameter>``, and those of new words."""
        of_layers = {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            for key, value in layer.named_parameters()
        }
        return of_layers | (self.tokens.parameters() if self.tokens else {})

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The base model inside the block: adapters add nothing and cost nothing."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def tensors(self, prefix: str = "diffusion_model.") -> dict[str, torch.Tensor]:
        """Copies of all that is learned under the names a file keeps, on the CPU."""
        with torch.inference_mode(False), torch.no_grad():
            of_layers = {
                f"{prefix}{name}.{key}": value.detach().to("cpu", copy=True)
                for name, layer in self.layers.items()
                for key, value in layer.tensors().items()
            }
            return of_layers | (self.tokens.tensors() if self.tokens else {})

    def settle(self, moved: Collection[str]) -> None:
        """What has to hold after every step, for the parameters of these names that it moved."""
        if self.tokens is not None and not self.tokens.parameters().keys().isdisjoint(moved):
            self.tokens.settle()

    def take_alphas(
        self, tensors: Mapping[str, torch.Tensor], prefix: str = "diffusion_model."
    ) -> None:
        """Use the alphas that ``tensors`` gave: a run that began with a file has the file's."""
        for name, layer in self.layers.items():
            alpha = tensors.get(f"{prefix}{name}.alpha")
            if alpha is not None:
                layer.take_alpha(float(alpha))

    def load(self, tensors: Mapping[str, torch.Tensor], prefix: str = "diffusion_model.") -> None:
        """Take over what ``tensors`` gave.

        Raises:
            ValueError: Keys of layers that are not attached, or absent or misshapen tensors.
        """
        words = {key: value for key, value in tensors.items() if key.startswith(BUNDLE)}
        if self.tokens is not None:
            self.tokens.load(words)
        elif words:
            raise ValueError(
                f"The state trains new words ({min(words).removeprefix(BUNDLE)}), which the settings do not: connect "
                "tokens."
            )
        grouped: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.layers}
        for key, value in tensors.items():
            if key in words:
                continue
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
                self.layers[name].load(group)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def _owners(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _adapted(
    attached: Attached, base: Callable[..., torch.Tensor], layer: Layer
) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = base(x, *args, **kwargs)
        return layer(x, y) if attached.enabled else y

    return forward
