# SPDX-License-Identifier: Apache-2.0
"""What the widgets of dataset nodes name, before any of them runs: a folder, and what further nodes change of it.

A plan comes from a browser as ``{"node": id, "values": {widget: value}, "datasets": [plans of its inputs]}``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...plain import plain
from ...trainers.data import Captioning, Dataset, Framing
from ...trainers.data.changes import joined, with_captioning, with_framing
from ...trainers.data.join import AS_GIVEN
from .folder_dataset import MAX_RESOLUTION, MIN_RESOLUTION, FolderOptions

MAX_NODES = 64
LOADER = "GraftLoadImages"
Change = Callable[[Sequence[Dataset], dict[str, Any]], Dataset]


@dataclass(frozen=True)
class Plan:
    """A node with its widgets, and the nodes that its datasets come from.

    Attributes:
        node: Its id.
        values: Of its widgets, as its settings want them.
        inputs: In the order of its sockets.
    """

    node: str
    values: tuple[tuple[str, Any], ...]
    inputs: tuple["Plan", ...] = ()

    @property
    def options(self) -> FolderOptions:
        """Those of a node that loads a folder."""
        return FolderOptions(**dict(self.values))

    def folders(self) -> Iterator[FolderOptions]:
        """All folders that are read, in the order in which they are joined."""
        if self.node == LOADER:
            yield self.options
        for plan in self.inputs:
            yield from plan.folders()

    def build(self, folder: Callable[[FolderOptions], Dataset]) -> Dataset:
        """The dataset that the node gives.

        Args:
            folder: The dataset of a folder.

        Raises:
            ValueError: A widget's value is not possible.
        """
        if self.node == LOADER:
            return folder(self.options)
        _, change, _ = _CHANGES[self.node]
        return change([plan.build(folder) for plan in self.inputs], dict(self.values))


def plan_of(said: object) -> Plan:
    """Read a plan that anyone may have made.

    Raises:
        ValueError: It is none, or is of a node whose dataset is known only when it ran.
    """
    return _read(said, [0])


def _read(said: object, count: list[int]) -> Plan:
    count[0] += 1
    if count[0] > MAX_NODES:
        raise ValueError(f"there are more than {MAX_NODES} nodes: run the graph instead")
    if not isinstance(said, Mapping):
        raise ValueError("a plan is an object with node, values and datasets")
    node, values, inputs = said.get("node"), said.get("values", {}), said.get("datasets", [])
    if not isinstance(node, str) or (node != LOADER and node not in _CHANGES):
        raise ValueError(f"the dataset of '{plain(node, 60)}' is known when the graph was run")
    if not isinstance(values, Mapping) or not isinstance(inputs, list):
        raise ValueError("values are an object, datasets a list")
    defaults, _, most = _CHANGES.get(node, (_FOLDER, None, 0))
    if len(inputs) > most or (most and not inputs):
        raise ValueError(f"{node} has {len(inputs)} datasets")
    taken = {
        name: _value(name, values[name], defaults[name]) for name in defaults if name in values
    }
    _check_loader(node, taken)
    return Plan(node, tuple(taken.items()), tuple(_read(one, count) for one in inputs))


def _check_loader(node: str, taken: Mapping[str, Any]) -> None:
    if node != LOADER:
        return
    if "folder" not in taken:
        raise ValueError("no folder is named")
    resolution = taken.get("resolution", MAX_RESOLUTION)
    if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
        raise ValueError(
            f"resolution is {resolution}: {MIN_RESOLUTION} to {MAX_RESOLUTION} is allowed"
        )


def _value(name: str, value: Any, default: Any) -> Any:
    """A widget's value, when it is of the kind of its default."""
    wanted = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = _float(name, value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not wanted:
        raise ValueError(f"{name} is {plain(repr(value), 60)}: {wanted.__name__} is wanted")
    return value


def _float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is too large") from error


def _defaults(settings: type) -> dict[str, Any]:
    """The fields that widgets set, by their defaults; the folder has none, and is a text."""
    return {f.name: f.default if type(f.default) in _KINDS else "" for f in fields(settings)}


def _captions(datasets: Sequence[Dataset], values: dict[str, Any]) -> Dataset:
    return with_captioning(datasets[0], Captioning(**values))


def _buckets(datasets: Sequence[Dataset], values: dict[str, Any]) -> Dataset:
    return with_framing(datasets[0], Framing(**values))


def _join(datasets: Sequence[Dataset], values: dict[str, Any]) -> Dataset:
    return joined(datasets, **values)


_KINDS = (bool, int, float, str)
_FOLDER = _defaults(FolderOptions)
_FRAMING = {name: value for name, value in _defaults(Framing).items() if name != "outside"}
_JOINING = {"repeats": "1", "weights": "1", "balance": AS_GIVEN}
_CHANGES: dict[str, tuple[dict[str, Any], Change, int]] = {
    "GraftCaptions": (_defaults(Captioning), _captions, 1),
    "GraftBuckets": (_FRAMING, _buckets, 1),
    "GraftJoinDatasets": (_JOINING, _join, 4),
}
"""Nodes that only change what they are given: their widgets, what they do, and how many datasets they take."""
