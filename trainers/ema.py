# SPDX-License-Identifier: Apache-2.0
"""A moving average of the trained weights, as LitEma and diffusers' EMAModel keep it.

Update n (from 1) has the decay min(decay, (1 + n) / (10 + n)), so that the start is forgotten fast.
EMAModel gives the same bits when it is stepped with the weights at the start, too.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch


class EMA:
    """Shadows of named parameters, fp32, where the parameters are.

    Args:
        parameters: The trained parameters by name.
        decay: The decay that is reached after a while.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = dict(parameters)
        self._shadows = {
            name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters after a step into the average."""
        self.updates += 1
        rest = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, shadow in self._shadows.items():
            shadow.sub_(rest * (shadow - self._parameters[name]))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside the block, and their own values after it."""
        before = {name: p.data for name, p in self._parameters.items()}
        try:
            for name, p in self._parameters.items():
                p.data = self._shadows[name].to(p.dtype)
            yield
        finally:
            for name, p in self._parameters.items():
                p.data = before[name]

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the shadows on the CPU, by the parameters' names."""
        with torch.inference_mode(False):
            return {name: shadow.to("cpu", copy=True) for name, shadow in self._shadows.items()}

    @torch.no_grad()
    def load(self, shadows: Mapping[str, torch.Tensor], updates: int) -> None:
        """Take over what ``state()`` gave; without shadows, the average begins at the present weights.

        Args:
            shadows: The shadows by the parameters' names, or nothing.
            updates: How many there were.

        Raises:
            ValueError: They belong to other parameters.
        """
        shapes = {name: shadow.shape for name, shadow in self._shadows.items()}
        if shadows and {name: shadow.shape for name, shadow in shadows.items()} != shapes:
            raise ValueError(
                "The state averages other parameters than this network; use the settings it was trained with."
            )
        self.updates = updates if shadows else 0
        for name, shadow in self._shadows.items():
            shadow.copy_(shadows[name] if shadows else self._parameters[name])
