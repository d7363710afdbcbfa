# SPDX-License-Identifier: Apache-2.0
"""A resumable training state, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands after ``step`` of ``total_steps``.

    Since every draw is keyed by seed and step, seed and step are all of the random state.
    ``adapter`` has the tensors as files name them; ``optimizer`` is per parameter name; ``model`` is
    the digest of what it was trained on, ``settings`` what it was trained with. ``validation`` has step and
    loss of the held-out pictures.
    """

    step: int
    total_steps: int
    seed: int
    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]
    losses: tuple[float, ...] = ()
    model: str = ""
    settings: str = ""
    validation: tuple[tuple[int, float], ...] = ()


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Copies of the optimizer's state on the CPU, by parameter name."""
    with torch.inference_mode(False):
        return {
            name: {k: _copy(v) for k, v in optimizer.state.get(p, {}).items()}
            for name, p in parameters.items()
        }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    state: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put copies of a state back.

    Args:
        optimizer: A new optimizer over the values of ``parameters``, in their order.
        parameters: The trained parameters by name.
        state: What ``optimizer_state`` gave.

    Raises:
        ValueError: The state belongs to other parameters.
    """
    if set(state) != set(parameters):
        raise ValueError(
            "The state trains other parameters than this network; use the settings it was trained with."
        )
    names = list(parameters)
    packed = optimizer.state_dict()
    packed["state"] = {
        i: {k: _copy(v) for k, v in state[name].items()}
        for i, name in enumerate(names)
        if state[name]
    }
    optimizer.load_state_dict(packed)


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
