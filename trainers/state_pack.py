# SPDX-License-Identifier: Apache-2.0
"""A training state as named tensors and one JSON text, exactly, and back: what its file holds.

Nothing of a file is executed: it holds tensors, numbers, text, lists and objects of these.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .record import Row
from .state import Best, State

FORMAT = 1
_TENSOR = "tensor"  # the key of an object that stands for a tensor
_WHOLE = ("step", "total_steps", "seed", "ema_updates", "looked")
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
        ValueError: A newer version made it, or something is missing or of another kind.
    """
    try:
        told = json.loads(text)
        version = _of(int, told["format"])
        if version > FORMAT:
            raise ValueError(
                f"it has format {version}, and this version of Graft reads up to {FORMAT}: update Graft"
            )
        return _state(_together(told["state"], tensors))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _state(told: dict[str, Any]) -> State:
    record = told["record"]
    validation = _list(told["validation"])
    best = told["best"]
    return State(
        **{name: _of(int, told[name]) for name in _WHOLE},
        **{name: _of(str, told[name]) for name in _TEXTS},
        adapter=_tensors(told["adapter"]),
        ema=_tensors(told["ema"]),
        log_variance=_tensors(told["log_variance"]),
        optimizer={name: _of(dict, kept) for name, kept in _of(dict, told["optimizer"]).items()},
        groups=tuple(
            {**_of(dict, group), "names": tuple(_of(str, n) for n in group["names"])}
            for group in _of(list, told["groups"])
        ),
        losses=tuple(_list(told["losses"])),
        record=tuple(_rows(*(_list(record[name]) for name in ("pictures", "levels", "losses")))),
        validation=tuple(
            (int(step), loss) for step, loss in zip(validation[::2], validation[1::2], strict=True)
        ),
        best=best
        and Best(_of(int, best["step"]), _of(float, best["loss"]), _tensors(best["tensors"])),
    )


def _rows(counts: list[Any], levels: list[float], losses: list[float]) -> list[Row]:
    rows, start = [], 0
    for count in counts:
        end = start + _of(int, count)
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
        return {key: _together(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_together(item, tensors) for item in value]
    return value


def _numbers(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _list(value: Any) -> list[Any]:
    numbers: list[Any] = _of(torch.Tensor, value).tolist()
    return numbers


def _tensors(value: Any) -> dict[str, torch.Tensor]:
    return {name: _of(torch.Tensor, tensor) for name, tensor in _of(dict, value).items()}


def _of(kind: type, value: Any) -> Any:
    is_number = isinstance(value, bool) and kind in (int, float)
    if not isinstance(value, kind) or is_number:
        raise TypeError(f"{str(value)[:40]} is {type(value).__name__}, not {kind.__name__}")
    return value
