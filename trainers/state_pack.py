# SPDX-License-Identifier: Apache-2.0
"""A training state as named tensors and one JSON text, exactly, and back: what its file holds.

Nothing of a file is executed: it holds tensors, numbers, text, lists and objects of these.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..plain import is_plain, plain
from .record import Row
from .state import Best, State

FORMAT = 1
MAX_TEXT = 2**24  # characters; 5,000 trained matrices take 3 MiB
MAX_MEMBERS = 500_000  # objects and lists in it: one for a tensor, one for a parameter
MAX_STEPS = 50_000_000  # a step that has no record is given an empty one
_LIMITS = {
    "step": (0, MAX_STEPS),
    "total_steps": (0, 2**63 - 1),
    "seed": (0, 2**64 - 1),
    "ema_updates": (0, 2**63 - 1),
    "looked": (-1, MAX_STEPS),
}
_TENSOR = "tensor"  # the key of an object that stands for a tensor
_WHOLE = tuple(_LIMITS)
_HISTORY = ("losses", "validation", "record/")  # losses may be NaN or infinite: they were so
_TEXTS = ("model", "settings", "algorithm")
_TREES = ("adapter", "optimizer", "groups", "ema", "log_variance")


def pack(state: State) -> tuple[dict[str, torch.Tensor], str]:
    """Take a state apart.

    Args:
        state: The state; its tensors are not copied.

    Returns:
        Tensors by name, and JSON with the names in their places.

    Raises:
        TypeError: The optimizer keeps something that is no tensor, number, text, list or mapping of these.
    """
    told: dict[str, Any] = {name: getattr(state, name) for name in (*_WHOLE, *_TEXTS, *_TREES)}
    told["losses"] = _numbers(state.losses)
    told["validation"] = _numbers([value for row in state.validation for value in row])
    told["record"] = {
        "pictures": torch.tensor([len(levels) for levels, _ in state.record], dtype=torch.int64),
        "levels": _numbers([value for levels, _ in state.record for value in levels]),
        "losses": _numbers([value for _, losses in state.record for value in losses]),
    }
    best = state.best
    told["best"] = best and {"step": best.step, "loss": best.loss, "tensors": best.tensors}
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps({"format": FORMAT, "state": _apart(told, "", tensors)}, ensure_ascii=False)
    return tensors, text


def unpack(tensors: Mapping[str, torch.Tensor], text: str) -> State:
    """Put a state together again.

    Args:
        tensors: By name.
        text: JSON that names them.

    Returns:
        The state.

    Raises:
        ValueError: Another version made it, or something is missing, of another kind, or beyond all sense.
    """
    if len(text) > MAX_TEXT or text.count("{") + text.count("[") > MAX_MEMBERS:
        raise ValueError(
            f"it has {len(text)} characters of settings, and at most {MAX_TEXT} with {MAX_MEMBERS} members are read"
        )
    try:
        told = json.loads(text)
        version = _of(int, told["format"])
        if version > FORMAT:
            raise ValueError(
                f"it has format {version}, and this version of Graft reads up to {FORMAT}: update Graft"
            )
        if version < 1:
            raise ValueError(
                f"it has format {version}, which no version of Graft wrote: formats begin with 1"
            )
        return _state(_together(told["state"], tensors))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {plain(error, 200)}") from error


def weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a state's tensors that are trained on, by the names that ``pack`` gave: all but its history."""
    return {name: t for name, t in tensors.items() if not name.startswith(_HISTORY)}


def _state(told: dict[str, Any]) -> State:
    record = told["record"]
    steps, losses = _pairs(told["validation"])
    adapter = _tensors(told["adapter"])
    plain_values: dict[str, Any] = {name: _whole(name, told[name]) for name in _WHOLE}
    plain_values |= {name: _of(str, told[name]) for name in _TEXTS}
    _named(plain_values["algorithm"])
    return State(
        **plain_values,
        adapter=adapter,
        ema=_tensors(told["ema"]),
        log_variance=_tensors(told["log_variance"]),
        optimizer={name: _of(dict, kept) for name, kept in _of(dict, told["optimizer"]).items()},
        groups=tuple(
            {**_of(dict, group), "names": tuple(_of(str, n) for n in _of(list, group["names"]))}
            for group in _of(list, told["groups"])
        ),
        losses=tuple(_list(told["losses"])),
        record=tuple(
            _rows(
                _list(record["pictures"], torch.int64),
                *(_list(record[name]) for name in ("levels", "losses")),
            )
        ),
        validation=tuple(zip(steps, losses, strict=True)),
        best=_best(told["best"], adapter),
    )


def _best(told: Any, adapter: Mapping[str, torch.Tensor]) -> Best | None:
    if told is None:
        return None
    best = Best(_whole("step", told["step"]), _of(float, told["loss"]), _tensors(told["tensors"]))
    if _shapes(best.tensors) != _shapes(adapter):
        raise ValueError("its best weights are of other layers than its weights")
    return best


def _pairs(value: Any) -> tuple[list[int], list[float]]:
    """Steps and losses of a validation, which are kept one after the other."""
    numbers = _list(value)
    if len(numbers) % 2 or not all(0 <= step <= MAX_STEPS for step in numbers[::2]):
        raise ValueError("its validation is no list of steps and losses")
    return [int(step) for step in numbers[::2]], numbers[1::2]


def _rows(counts: list[Any], levels: list[float], losses: list[float]) -> list[Row]:
    rows, start = [], 0
    if len(counts) > MAX_STEPS or any(count < 0 for count in counts):
        raise ValueError("the record has a step with less than no pictures")
    for count in counts:
        end = start + count
        rows.append((tuple(levels[start:end]), tuple(losses[start:end])))
        start = end
    if not start == len(levels) == len(losses):
        raise ValueError(f"the record is of {start} pictures and has {len(levels)} levels")
    return rows


def _apart(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = path[1:]
        if name in tensors:
            raise TypeError(f"two tensors are called {name}")
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        if _TENSOR in value:
            raise TypeError(f"{path[1:]} has a member called {_TENSOR}")
        return {_of(str, k): _apart(v, f"{path}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_apart(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path[1:]} is {type(value).__name__}, which a state's file does not hold")


def _together(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {_named(key): _together(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_together(item, tensors) for item in value]
    return value


def _named(name: str) -> str:
    if not is_plain(name):
        raise ValueError(f"it has something called '{plain(name, 100)}', which nothing of it is")
    return name


def _numbers(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _list(value: Any, dtype: torch.dtype = torch.float64) -> list[Any]:
    tensor = _of(torch.Tensor, value)
    if tensor.ndim != 1 or tensor.dtype != dtype:
        raise TypeError(f"{tensor.dtype} of shape {list(tensor.shape)} is no list of {dtype}")
    numbers: list[Any] = tensor.tolist()
    return numbers


def _whole(name: str, value: Any) -> int:
    low, high = _LIMITS[name]
    number = _of(int, value)
    if not low <= number <= high:
        raise ValueError(f"its {name} is {number}, and {low} to {high} is possible")
    return int(number)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _tensors(value: Any) -> dict[str, torch.Tensor]:
    return {name: _of(torch.Tensor, tensor) for name, tensor in _of(dict, value).items()}


def _of(kind: type, value: Any) -> Any:
    is_number = isinstance(value, bool) and kind in (int, float)
    if not isinstance(value, kind) or is_number:
        said = plain(value, 40) if isinstance(value, (bool, int, float, str)) else "something"
        raise TypeError(f"{said} is {type(value).__name__}, not {kind.__name__}")
    return value
