# SPDX-License-Identifier: Apache-2.0
"""Families of interchangeable parts, each a frozen dataclass that registers itself by name.

A field's default, tooltip and limits are written once, in the dataclass; widgets, help and the
parser of option strings read them from there.
"""

import dataclasses
import difflib
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

from .plain import plain

T = TypeVar("T")
_MOST = 100  # characters of what someone typed, in a message
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PARTS = re.compile(r'(?:[^,\n"]|"[^"]*")+')
_SCALARS = (bool, int, float, str)
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def option(default: Any, tooltip: str, *, repr: bool = True, **limits: Any) -> Any:
    """A dataclass field with a default, a tooltip and limits (``min``, ``max``, ``choices``).

    Without ``repr`` it is no part of what tells one run from another: what is trained does not depend on it.
    """
    metadata = {"tooltip": tooltip, **limits}
    return dataclasses.field(default=default, repr=repr, metadata=metadata)


def check_limits(value: Any) -> None:
    """Check a dataclass instance against the limits of its fields.

    Raises:
        ValueError: A field is outside its limits; names the field, what came and what is allowed.
    """
    for field in dataclasses.fields(value):
        given, limits = getattr(value, field.name), field.metadata
        if isinstance(given, float) and not math.isfinite(given):
            raise ValueError(f"{field.name} is {given}; it must be a finite number.")
        low, high = limits.get("min"), limits.get("max")
        if (low is not None and not given >= low) or (high is not None and not given <= high):
            allowed = f"at least {low}" if high is None else f"at most {high}"
            if low is not None and high is not None:
                allowed = f"between {low} and {high}"
            raise ValueError(f"{field.name} is {given}; it must be {allowed}.")
        if "choices" in limits and given not in limits["choices"]:
            raise ValueError(unknown(field.name, str(given), limits["choices"]))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among ``known``, with the nearest ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(name[:_MOST], known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return plain(f"Unknown {kind} '{name[:_MOST]}'.{hint} Known: {', '.join(known)}.")


def options_of(settings: type) -> dict[str, "dataclasses.Field[Any]"]:
    """The fields of a dataclass that an option string can set, by name."""
    fields = dataclasses.fields(settings)
    return {f.name: f for f in fields if f.metadata and isinstance(f.default, _SCALARS)}


def parse_options(settings: type, name: str, options: str) -> dict[str, Any]:
    """Values for the fields of a dataclass from a string such as ``"gamma=5, p_mean=-1.2"``.

    Args:
        settings: The dataclass.
        name: What it is called in messages.
        options: ``name=value`` pairs with commas or new lines between them; a value with commas is in double quotes.

    Raises:
        ValueError: Unknown option (near names are listed) or a malformed value.
    """
    fields, chosen = options_of(settings), {}
    if options.count('"') % 2:
        raise ValueError(f"A double quote is left open in the options of {name}: {options}")
    for part in filter(None, (part.strip() for part in _PARTS.findall(options))):
        key, separator, text = (piece.strip() for piece in part.partition("="))
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        if not separator:
            raise ValueError(f"Option '{plain(part, _MOST)}' of {name} must read name=value.")
        if key not in fields:
            raise ValueError(unknown(f"option of {name}", key, fields))
        chosen[key] = _convert(fields[key], text)
    return chosen


class Registry(Generic[T]):
    """Frozen dataclasses of one family, by name."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._members: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that adds a frozen dataclass under ``name``.

        Raises:
            TypeError: The class is not a frozen dataclass, or a field lacks a default or tooltip.
            ValueError: The name is taken or is not lower-case words joined by hyphens.
        """

        def add(cls: type[T]) -> type[T]:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{self.family} name '{name}' must be lower-case words and '-'.")
            if name in self._members:
                raise ValueError(f"{self.family} '{name}' is registered twice.")
            if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise TypeError(f"{cls.__name__} must be a frozen dataclass.")
            for field in dataclasses.fields(cls):
                if field.default is dataclasses.MISSING or not field.metadata.get("tooltip"):
                    raise TypeError(f"{cls.__name__}.{field.name} needs a default and a tooltip.")
            self._members[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return add

    def names(self) -> tuple[str, ...]:
        """The registered names, in the order of registration."""
        return tuple(self._members)

    def get(self, name: str) -> type[T]:
        """The class registered under ``name``.

        Raises:
            ValueError: No such name; lists the near and the known ones.
        """
        if name not in self._members:
            raise ValueError(unknown(self.family, name, self._members))
        return self._members[name]

    def parse(self, name: str, options: str = "", **values: Any) -> T:
        """Build a member from values and an option string such as ``"gamma=5, p_mean=-1.2"``.

        Fields that the member does not have are dropped from ``values`` (they are widgets shared
        by the family), but never from ``options``.

        Raises:
            ValueError: Unknown name, unknown option (near names are listed) or a malformed value.
        """
        cls = self.get(name)
        every = getattr(cls, "__dataclass_fields__", {})
        chosen = {key: value for key, value in values.items() if key in every}
        return cls(**{**chosen, **parse_options(cast(Any, cls), name, options)})

    def discover(self, path: Iterable[str], package: str) -> None:
        """Import every module of a package, so that its members register themselves."""
        for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
            importlib.import_module(f".{module.name}", package)


Parts = dict[str, tuple[Registry[Any], str]]


def parse_parts(
    parts: Parts, options: str, settings: type | None = None, **values: Any
) -> dict[str, Any]:
    """Build several parts from one string of options; each option goes to the part that has it.

    Args:
        parts: Registry and name of every part, by its prefix.
        options: ``name=value`` pairs; ``prefix.name=value`` where several parts have the name.
        settings: What holds the parts, where it has options of its own: they come back as
            ``settings``, values by field.
        values: Values for the fields of that name, where a part has it.

    Raises:
        ValueError: No part has an option, or several have it.
    """
    fields = {
        prefix: set(options_of(registry.get(name))) for prefix, (registry, name) in parts.items()
    }
    if settings is not None:
        fields["settings"] = set(options_of(settings))
    shares: dict[str, list[str]] = {prefix: [] for prefix in fields}
    for option in filter(None, (part.strip() for part in options.replace("\n", ",").split(","))):
        key, _, value = (piece.strip() for piece in option.partition("="))
        prefix, _, short = key.rpartition(".")
        owners = [owner for owner in fields if short in fields[owner] and prefix in ("", owner)]
        if not owners:
            raise ValueError(
                unknown("option", key, {name for names in fields.values() for name in names})
            )
        if len(owners) > 1:
            clear = " or ".join(f"{owner}.{short}" for owner in owners)
            raise ValueError(f"Several parts have an option '{short}': write {clear}.")
        shares[owners[0]].append(f"{short}={value}" if "=" in option else short)
    built: dict[str, Any] = {
        prefix: registry.parse(name, ",".join(shares[prefix]), **values)
        for prefix, (registry, name) in parts.items()
    }
    if settings is not None:
        built["settings"] = parse_options(settings, settings.__name__, ",".join(shares["settings"]))
    return built


def _convert(field: "dataclasses.Field[Any]", text: str) -> Any:
    kind: Any = type(field.default)
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"Option {field.name}={plain(text, _MOST)} is not a valid {kind.__name__}; "
            f"the default is {field.default}."
        ) from error
