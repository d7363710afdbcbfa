# SPDX-License-Identifier: Apache-2.0
"""A resumable training state, as a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .record import Row


@dataclass(frozen=True, eq=False)
class Best:
    """The weights after the step whose ``loss`` was least, as a file names them, on the CPU."""

    step: int
    loss: float
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands after ``step`` of ``total_steps``.

    Since every draw is keyed by seed and step, seed and step are all of the random state.
    ``adapter`` has the tensors as files name them; ``optimizer`` is per parameter name; ``model`` is
    the digest of what it was trained on, ``settings`` what it was trained with. ``groups`` are the
    running numbers of groups of parameters, for the optimizers named in ``algorithm`` that have such;
    ``ema`` are the averaged weights per parameter name after ``ema_updates``, empty without them. ``record`` has the
    noise levels and losses of the pictures of every step. ``validation`` has step and loss of the held-out pictures.
    ``log_variance`` is what the objective has learned, where it learns. ``best`` are the best weights so far, and
    ``looked`` is the step after which that was last judged.
    """

    step: int
    total_steps: int
    seed: int
    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]
    losses: tuple[float, ...] = ()
    model: str = ""
    settings: str = ""
    algorithm: str = ""
    groups: tuple[Mapping[str, Any], ...] = ()
    ema: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ema_updates: int = 0
    record: tuple[Row, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    log_variance: Mapping[str, torch.Tensor] = field(default_factory=dict)
    best: Best | None = None
    looked: int = -1


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
        optimizer: A new optimizer over the values of ``parameters``, in any groups.
        parameters: The trained parameters by name.
        state: What ``optimizer_state`` gave.

    Raises:
        ValueError: The state belongs to other parameters.
    """
    if set(state) != set(parameters):
        raise ValueError(
            "The state trains other parameters than this network; use the settings it was trained with."
        )
    names = [name for group in _grouped(optimizer, parameters) for name in group]
    packed = optimizer.state_dict()
    packed["state"] = {
        i: {k: _copy(v) for k, v in state[name].items()}
        for i, name in enumerate(names)
        if state[name]
    }
    optimizer.load_state_dict(packed)


def group_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    running: Sequence[str],
) -> tuple[dict[str, Any], ...]:
    """The ``running`` numbers of each group and, as ``names``, whom they belong to; () without any."""
    if not running:
        return ()
    names = _grouped(optimizer, parameters)
    return tuple(
        {"names": members, **{key: _copy(group[key]) for key in running}}
        for members, group in zip(names, optimizer.param_groups, strict=True)
    )


def restore_groups(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
    running: Sequence[str],
) -> None:
    """Put back what ``group_state`` gave, and nothing else that may be there.

    Args:
        optimizer: A new optimizer over the values of ``parameters``.
        parameters: The trained parameters by name.
        groups: What ``group_state`` gave; nothing is put back of ().
        running: The numbers of a group that change from step to step.

    Raises:
        ValueError: The state's groups are others.
    """
    names = _grouped(optimizer, parameters)
    if groups and [tuple(group["names"]) for group in groups] != names:
        raise ValueError(
            f"The state steps its parameters in {len(groups)} groups, and these settings make {len(names)} of them or "
            "put others together; use the learning rates, decays and stops of the parts that it was trained with."
        )
    for group, saved in zip(optimizer.param_groups, groups, strict=False):
        group.update({key: saved[key] for key in running if key in saved})


def _grouped(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> list[tuple[str, ...]]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [tuple(names[id(p)] for p in group["params"]) for group in optimizer.param_groups]


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
