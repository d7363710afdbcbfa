# SPDX-License-Identifier: Apache-2.0
"""What every adapter offers: settings that build a layer for a module, and the layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from .dropout import Masks, Source
from .fused import Fetch, own
from .pair import Kept, Pair


class Layer(nn.Module):
    """The trainable part attached to one module; its parameters are fp32.

    ``forward`` returns the adapted output from the module's input ``x`` and base output ``y``.

    Attributes:
        files: Names of parameters by the suffix under which files keep them.
        masks: What is dropped out in training.
        module_dropout: Share of the pictures for which the layer is left out.
        fetch: Gives the weight and bias of the module as it uses them.
        has_exact_gradient: Whether the gradient is that of the output; not, where a part counts as a number.
    """

    files: Mapping[str, str] = {}
    module_dropout: float = 0.0
    has_exact_gradient = True

    def __init__(self) -> None:
        super().__init__()
        self.masks = Masks(Source(), "")
        self.fetch: Fetch = own

    def install(self, module: nn.Module, is_on: Callable[[], bool]) -> Callable[[], None]:
        """Let a module compute with this layer.

        Args:
            module: The one that the layer was built for.
            is_on: Whether the layer counts; asked in every forward.

        Returns:
            What takes it off again.

        Raises:
            RuntimeError: Another adapter is on the module.
        """
        if "forward" in module.__dict__:
            raise RuntimeError(
                "Another adapter is attached to this model already; remove it first."
            )
        base: Callable[..., torch.Tensor] = module.forward
        direct = self.direct(module)

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not is_on():
                return base(x, *args, **kwargs)
            if direct is not None and not args and not kwargs:
                adapted = direct(x)
                if adapted is not None:
                    return adapted
            return self.computed(x, lambda given: base(given, *args, **kwargs))

        module.forward = forward  # type: ignore[method-assign]
        return lambda: module.__dict__.pop("forward", None)

    def direct(self, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor | None] | None:
        """A faster way to the adapted output, where there is one.

        Args:
            module: The one that the layer was built for.

        Returns:
            What computes it from the module's input, or gives None for one that has to be ``computed``.
        """
        return None

    def computed(
        self, x: torch.Tensor, base: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The adapted output.

        Args:
            x: The module's input.
            base: The module as it is.
        """
        adapted: torch.Tensor = self(x, base(self.before(x)))
        return adapted

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """What the module gets instead of its input ``x``."""
        return x

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors by the suffix under which files keep them (``lora_up.weight``, ``alpha``, ...)."""
        return {suffix: getattr(self, name) for suffix, name in self.files.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave.

        Raises:
            ValueError: A tensor is absent or has another shape.
        """
        for suffix, name in self.files.items():
            parameter = getattr(self, name)
            if suffix not in tensors or tensors[suffix].shape != parameter.shape:
                came = f"shape {list(tensors[suffix].shape)}" if suffix in tensors else "nothing"
                raise ValueError(f"{suffix}: expected shape {list(parameter.shape)}, got {came}.")
            with torch.no_grad():
                parameter.copy_(tensors[suffix])

    def begin(self, pair: Pair) -> Kept | None:
        """Start with a change of the layer instead of none.

        Args:
            pair: The change.

        Returns:
            How much of it was kept, None where it was taken over as it is.

        Raises:
            ValueError: This kind of network cannot begin so, or the shapes are others.
        """
        raise ValueError(
            f"{type(self).__name__} cannot begin with a LoRA; choose the network 'lora', or disconnect start_from."
        )

    def take_alpha(self, alpha: float) -> None:
        """Use the scale that a state was trained with; kinds without one have nothing to take."""

    def change_norm(self) -> float | None:
        """The Frobenius norm of dW, found without dW itself; None where the kind has no such form."""
        return None

    def whole(self, change: torch.Tensor) -> torch.Tensor:
        """What is added to the module's output, 0 for the pictures that the layer is left out for.

        Args:
            change: What would be added, ``[B, ...]``.
        """
        if not (self.module_dropout and self.training and self.masks.is_on):
            return change
        kept = self.masks.kept(len(change), (), self.module_dropout, "module")
        return change * kept.to(change).reshape(-1, *(1,) * (change.ndim - 1))


class Network(Protocol):
    """Settings of an adapter: a frozen dataclass registered in ``NETWORKS``."""

    @property
    def blocks(self) -> str:
        """Which layers are trained, in the block language."""

    def targets(self, root: nn.Module) -> tuple[str, ...]:
        """Names of the modules of a model that layers are attached to."""

    def plan(self, names: Sequence[str]) -> Mapping[str, "Network"]:
        """The settings of every trained layer by its name."""

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A layer for one of these modules, with no effect before training."""
