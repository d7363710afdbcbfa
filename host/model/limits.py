# SPDX-License-Identifier: Apache-2.0
"""When an adapter counts, and where in the picture: a range of the sampling, and a mask."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import torch

from .injection import Removers
from .picture import Picture

MARK = "graft limited"  # what keys of injections begin with


@dataclass(frozen=True, eq=False)
class Limits:
    """Limits of an adapter's effect.

    Attributes:
        start: Share of the sampling before which there is none, 0 to 1.
        end: Share of the sampling after which there is none.
        mask: Where in the picture there is one, ``[n, height, width]`` for one or each picture of a batch; everywhere
            where it is None.
    """

    start: float = 0.0
    end: float = 1.0
    mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(
                f"start_percent {self.start:g} and end_percent {self.end:g} must be from 0 to 1, and start_percent the "
                "smaller one: 0 and 0.5 are the first half of the sampling."
            )
        if self.mask is None:
            return
        if self.mask.ndim not in (2, 3) or not self.mask.numel():
            raise ValueError(
                f"The mask has the shape {list(self.mask.shape)}; a MASK is [pictures, height, width]."
            )
        if not bool(torch.isfinite(self.mask).all()):
            raise ValueError("The mask has values that are no finite numbers.")

    @property
    def has_range(self) -> bool:
        """Whether there are steps without an effect."""
        return self.start > 0.0 or self.end < 1.0

    @property
    def are_none(self) -> bool:
        """Whether nothing is limited."""
        return not self.has_range and self.mask is None

    @property
    def reason(self) -> str:
        """``because of the range and the mask``."""
        parts = ["the range"] * self.has_range + ["the mask"] * (self.mask is not None)
        return f"because of {' and '.join(parts)}" if parts else ""


class _Now(threading.local):
    """What counts in this thread: the host computes parts of a step on several devices at once."""

    is_on = False


class Gate:
    """Whether limited hooks count in a forward of the model.

    Args:
        limits: What limits them.

    Attributes:
        picture: Where the mask is; None without one.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._now = _Now()
        self.picture = None if limits.mask is None else Picture(limits.mask)

    def is_on(self) -> bool:
        """Whether they count now."""
        return self._now.is_on

    def install(self, patcher: Any) -> Removers:
        """Look at the noise level of every forward from here on.

        Args:
            patcher: The host's ModelPatcher that is being loaded.

        Returns:
            What ends it.
        """
        root = patcher.model.diffusion_model
        sampling = patcher.get_model_object("model_sampling")
        limits = self.limits
        high = float(sampling.percent_to_sigma(limits.start)) if limits.start > 0 else math.inf
        low = float(sampling.percent_to_sigma(limits.end)) if limits.end < 1 else -math.inf

        def begin(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            options = kwargs.get("transformer_options") or {}
            sigma = options.get("sigmas")
            if sigma is None and limits.has_range:
                sigma = sampling.sigma(args[1])
            level = 0.0 if sigma is None else float(sigma.flatten()[0])
            self._now.is_on = not limits.has_range or low <= level <= high
            if not self._now.is_on or self.picture is None:
                return None
            return args, {**kwargs, "transformer_options": self.picture.begin(args[0], options)}

        def end(*_: Any) -> None:
            self._now.is_on = False
            if self.picture is not None:
                self.picture.end()

        handles = (
            root.register_forward_pre_hook(begin, with_kwargs=True),
            root.register_forward_hook(end, always_call=True),
        )
        return [handle.remove for handle in handles]


def refuse_limited(model: Any, what: str) -> None:
    """Refuse a MODEL with an adapter that counts in a part of the sampling or the picture.

    Args:
        model: The host's ModelPatcher.
        what: What cannot be done with it, for the message.

    Raises:
        ValueError: It has one.
    """
    if any(str(key).startswith(MARK) for key in getattr(model, "injections", {})):
        raise ValueError(
            f"the MODEL carries an adapter with a timestep range or a mask, {what}: connect the model from before that "
            "Load Adapter, or leave its range at 0 and 1 and its mask unconnected"
        )
