# SPDX-License-Identifier: Apache-2.0
"""An adapter of which only the wanted tensors are read: a file on disk, or one that is in memory."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..adapters.file import AdapterFile
from ..plain import plain
from . import lora_file

Read = Callable[[Iterable[str]], dict[str, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Source:
    """What an adapter holds, and a way to read some of it.

    Attributes:
        name: What it is called.
        metadata: Its metadata.
        shapes: Shapes of its tensors by name.
        read: Reads the tensors of these names.
    """

    name: str
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    read: Read


def on_disk(path: Path) -> Source:
    """A file, of which nothing but the header is read yet.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, cut off, or holds no tensors.
    """
    header = lora_file.header(path)
    if not header.tensors:
        raise ValueError(f"'{plain(path.name)}' holds no tensors.")
    shapes = {name: header.tensors[name].shape for name in sorted(header.tensors)}

    def read(names: Iterable[str]) -> dict[str, torch.Tensor]:
        return lora_file.read_some(path, names)

    return Source(plain(path.stem), dict(header.metadata), shapes, read)


def in_memory(file: AdapterFile) -> Source:
    """An adapter that is there already."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}

    def read(names: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: file.tensors[name] for name in names}

    return Source(file.name, file.metadata, shapes, read)
