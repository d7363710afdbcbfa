# SPDX-License-Identifier: Apache-2.0
"""What a MODEL carries beside its weights and their patches, told so that equal graphs tell the same in every process.

FreeU, HyperTile, perturbed attention and their like are functions in the model's options, with their settings in the
variables that they close over. A function is told by its name and by those; an object by its class and by what its
constructor was given. No address, id or uuid is told, nothing that a function writes itself while it is at work (a
counter, say), and nothing about devices.
"""

import contextlib
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import logging
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

SAMPLE_BYTES = 4096
_DEPTH = 16  # of containers and closures in one another
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What the host itself puts there for one sampling, or for devices.
_PASSING = frozenset({"multigpu_clones", "multigpu_options", "multigpu_thread_pool"})
_CARRIED = (
    "model_options",
    "wrappers",
    "callbacks",
    "injections",
    "additional_models",
    "weight_wrapper_patches",
)
_log = logging.getLogger(__name__)


def told(model: Any) -> Iterator[str]:
    """Lines about the options, wrappers and object patches of a ModelPatcher; none where it has none."""
    carried: dict[str, Any] = {}
    for name in _CARRIED:
        value = getattr(model, name, None) or {}
        if isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if key not in _PASSING}
        if not _is_empty(value):
            carried[name] = value
    for name, patch in sorted(getattr(model, "object_patches", {}).items()):
        carried[f"object {name}"] = patch
    teller = _Teller()
    teller.tell(carried)  # what a function writes is known when all of them have been seen
    return (f"{name} {teller.tell(value)}" for name, value in carried.items())


def tell(value: Any) -> str:
    """A text about a value: equal for equal settings, also in another process."""
    teller = _Teller()
    teller.tell(value)
    return teller.tell(value)


class _Teller:
    """Tells about values, and remembers which variables are written by the functions it came by."""

    def __init__(self) -> None:
        self._written: set[int] = set()
        self._open: list[int] = []  # what is being told about: a function may close over itself

    def tell(self, value: Any) -> str:
        if isinstance(value, enum.Enum):
            return f"{type(value).__name__}.{value.name}"
        if isinstance(value, _PLAIN) or isinstance(value, torch.dtype):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if isinstance(value, type | types.BuiltinFunctionType):
            return _name(value)
        is_open = id(value) in self._open or len(self._open) == _DEPTH
        if is_open or isinstance(value, torch.device):
            return f"<{type(value).__name__}>"
        self._open.append(id(value))
        try:
            return self._parts(value)
        except Exception as error:  # noqa: BLE001 - what another pack puts there may raise when it is looked at
            _log.debug("%s is told by its class alone: %s", type(value).__name__, error)
            return f"<{type(value).__name__}>"
        finally:
            self._open.pop()

    def _parts(self, value: Any) -> str:
        """About what has parts; the kinds that are most special come first."""
        if isinstance(value, Mapping):
            pairs = [(self.tell(k), self.tell(v)) for k, v in value.items() if not _is_place(k)]
            return f"{{{', '.join(f'{key}: {item}' for key, item in sorted(pairs))}}}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self.tell, value))}]"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(self.tell, value)))}}}"
        if isinstance(value, functools.partial):
            return f"partial({', '.join(map(self.tell, (value.func, value.args, value.keywords)))})"
        if isinstance(value, types.MethodType):
            return f"{_name(value.__func__)} of {self.tell(value.__self__)}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, torch.nn.Module):
            return _module(value)
        if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            return _array(value)
        return self._object(value)

    def _function(self, function: types.FunctionType) -> str:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        self._written |= {id(cells[name]) for name in _written(function) if name in cells}
        closed = {}
        for name, cell in cells.items():
            if id(cell) not in self._written:
                with contextlib.suppress(ValueError):  # not set yet
                    closed[name] = cell.cell_contents
        parts = (closed, function.__defaults__ or (), function.__kwdefaults__ or {})
        return f"{_name(function)}({', '.join(map(self.tell, parts))})"

    def _object(self, value: Any) -> str:
        """Any other object: its class, and what its constructor was given, if it keeps that by the same name."""
        if hasattr(value, "model_options") and hasattr(value, "patches"):
            return _name(type(value))  # a MODEL: it may be the one that is told about
        given = {}
        attributes = {*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())}
        for name in _parameters(type(value)):
            for attribute in (name, f"_{name}"):
                if attribute in attributes:
                    given[name] = getattr(value, attribute)
                    break
        return f"{_name(type(value))}({self.tell(given)})"


def _is_empty(value: Any) -> bool:
    """Whether there is nothing in it but empty containers."""
    if isinstance(value, Mapping):
        return all(_is_empty(item) for item in value.values())
    return isinstance(value, list | tuple | set) and not value


def _is_place(key: Any) -> bool:
    """Notes by device or object are kept while a function is at work; settings have names or numbers."""
    return isinstance(key, torch.device | torch.nn.Module)


def _name(value: Any) -> str:
    """A class or function; of a pack's module only the end of its name, which else has the folder in it."""
    module = str(getattr(value, "__module__", "")).replace("\\", "/").rpartition("/")[2]
    return f"{module}.{getattr(value, '__qualname__', type(value).__name__)}"


def _written(function: types.FunctionType) -> set[str]:
    """The variables outside of a function that it writes, itself or in what it defines."""
    found, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        outer = set(code.co_freevars)
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("STORE_DEREF", "DELETE_DEREF") and (
                instruction.argval in outer
            ):
                found.add(str(instruction.argval))
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return found


def _module(module: torch.nn.Module) -> str:
    """A module: its bases, as nodes make classes of one name from several; its numbers; its tensors."""
    bases = "/".join(cls.__name__ for cls in type(module).__mro__ if cls is not object)
    numbers = {
        key: value
        for key, value in sorted(vars(module).items())
        if isinstance(value, _PLAIN) and not key.startswith("_") and key != "training"
    }
    named = [*module.named_parameters(), *module.named_buffers()]
    tensors = [
        f"{name} {_tensor(value)}" for name, value in sorted(named, key=lambda pair: pair[0])
    ]
    return f"{bases}({numbers}, {', '.join(tensors)})"


def _parameters(kind: type) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    try:
        return list(inspect.signature(kind).parameters)
    except (TypeError, ValueError):  # written in C
        return []


def _array(array: Any) -> str:
    """An array or a number of NumPy's; one of objects holds their addresses."""
    text = f"{tuple(array.shape)} {array.dtype}"
    data = b"" if array.dtype.hasobject else array.tobytes()[:SAMPLE_BYTES]
    return f"{text} {hashlib.sha256(data).hexdigest()}"


def _tensor(tensor: torch.Tensor) -> str:
    text = f"{tuple(tensor.shape)} {tensor.dtype}"
    if type(tensor).__name__ == "QuantizedTensor" or tensor.is_meta or tensor.numel() == 0:
        return text
    head = tensor.detach().flatten()[: max(1, SAMPLE_BYTES // tensor.element_size())]
    data = head.contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return f"{text} {hashlib.sha256(data).hexdigest()}"
