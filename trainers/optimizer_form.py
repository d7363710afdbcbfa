# SPDX-License-Identifier: Apache-2.0
"""What an optimizer keeps for a parameter, found by letting it step one: a state of another form is refused.

The library would take such a state, and fail somewhere in its next step.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..plain import plain
from .optimizers import Algorithm

Form = tuple[object, ...]


def check_kept(
    algorithm: Algorithm,
    parameters: Mapping[str, torch.nn.Parameter],
    kept: Mapping[str, Mapping[str, Any]],
) -> None:
    """Compare what a state keeps of each parameter with what the optimizer would.

    Args:
        algorithm: Settings of the optimizer.
        parameters: The trained parameters by name.
        kept: What the state has, by the same names; nothing for a parameter that was never stepped.

    Raises:
        ValueError: Names the first that differs, and how.
    """
    known: dict[tuple[object, ...], list[dict[str, Form]]] = {}
    for name, values in kept.items():
        parameter = parameters.get(name)
        if parameter is None or not values:
            continue
        kind = (parameter.shape, parameter.dtype, parameter.device)
        if kind not in known:
            # Some keep less of a parameter that is still 0, as LoRA's up matrices are.
            known[kind] = [_steps(algorithm, parameter, value) for value in (0.0, 1.0)]
        _compare(name, values, known[kind])


def finite_number(name: str, value: Any) -> float:
    """What an optimizer keeps as a number.

    Args:
        name: Of the number.
        value: A number, or a tensor of one.

    Returns:
        The number.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -(2.0**63) < value < 2.0**63:
        raise ValueError(
            f"The state's optimizer has something that is no number in reason as {name}: take another state."
        )
    return float(value)


@torch.inference_mode(False)
def _steps(algorithm: Algorithm, parameter: torch.nn.Parameter, value: float) -> dict[str, Form]:
    """The forms of what is kept of a parameter like this one after a step."""
    probe = torch.nn.Parameter(torch.full_like(parameter, value, requires_grad=False))
    probe.grad = torch.ones_like(probe)
    optimizer = algorithm.build([probe])
    optimizer.step()
    return {key: _form(kept) for key, kept in optimizer.state[probe].items()}


def _form(value: object) -> Form:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.is_floating_point()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return ("a number",)
    return (type(value).__name__,)


def _compare(name: str, values: Mapping[str, Any], forms: list[dict[str, Form]]) -> None:
    wanted = [{form[key] for form in forms if key in form} for key in values]
    if not any(values.keys() == form.keys() for form in forms):
        raise ValueError(
            f"The state's optimizer keeps {_some(values)} of {name}, and this one keeps {_some(forms[0])}: the file is "
            "of another version of it, or damaged. Take another state, or begin anew."
        )
    for (key, value), allowed in zip(values.items(), wanted, strict=True):
        if _form(value) not in allowed:
            expected = " or ".join(sorted(map(_text, allowed)))
            raise ValueError(
                f"The state's optimizer has {_text(_form(value))} as {key} of {name}, which must be {expected}: the "
                "state is damaged. Take another one, or begin anew."
            )
        if not isinstance(value, torch.Tensor):
            _check_count(f"{key} of {name}", finite_number(f"{key} of {name}", value))


def _check_count(name: str, value: float) -> None:
    if not 0 <= value < 2.0**63:
        raise ValueError(
            f"The state's optimizer has {value:g} as {name}, where 0 or more is possible: take another state."
        )


def _text(form: Form) -> str:
    if isinstance(form[0], tuple):
        return f"a tensor of shape {list(form[0])}{'' if form[1] else ' of whole numbers'}"
    return str(form[0])


def _some(names: Mapping[str, Any]) -> str:
    return plain(", ".join(sorted(names)[:6]), 200) or "nothing"
