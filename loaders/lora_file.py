# SPDX-License-Identifier: Apache-2.0
"""LoRA files: safetensors whose bytes depend on nothing but tensors and metadata.

The safetensors library writes its metadata in the order of a randomly seeded hash map, so equal
files would differ; the header is therefore written here, sorted (the format: eight bytes of length,
a JSON header padded to eight bytes, the data).
"""

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..adapters.bottleneck import is_bottleneck
from ..adapters.file import AdapterFile
from ..plain import plain
from ..safetensors_header import Header, read_header
from .alphas import beside

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_KERNELS = ("lora_down.weight", "lora_mid.weight")
# What LyCORIS calls a kind, by a part of its tensors' names; the first that is there counts.
_ALGORITHMS = {
    ".hada_w1_a": "loha",
    ".lokr_w": "lokr",
    ".oft_blocks": "diag-oft",
    ".dora_scale": "locon",
    ".diff": "full",
}


def serialize(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes]:
    """The bytes of a safetensors file, piece by piece.

    Args:
        tensors: Dense tensors of any shape by name, on any device.
        metadata: Text by text.

    Yields:
        The header, then the data of each tensor.

    Raises:
        ValueError: There is nothing to write, a name is not text, or a tensor is on the meta
            device, sparse or of a kind that the format has not.
    """
    if not tensors:
        raise ValueError("There are no tensors to write.")
    for name, tensor in tensors.items():
        _check(name, tensor)
    # Wide elements first: every tensor then starts at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = {str(key): str(metadata[key]) for key in sorted(metadata)}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield _bytes(tensors[name])


def write(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file at ``path``; equal arguments give equal bytes.

    Args:
        path: The file; make it appear at once by a temporary name, see ``host/files/paths.py``.
        tensors: Dense tensors by name.
        metadata: Text by text.

    Raises:
        ValueError: As ``serialize``.
        OSError: The disk is full, or the folder cannot be written.
    """
    pieces = serialize(tensors, metadata)
    first = next(pieces)
    with path.open("wb") as file:
        file.write(first)
        for piece in pieces:
            file.write(piece)


def read(path: Path) -> AdapterFile:
    """Read a safetensors file; nothing keeps it open or mapped afterwards.

    Args:
        path: The file.

    Returns:
        Tensors on the CPU and metadata; ``name`` is the file's stem, as text that is safe to show.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, cut off, or holds no tensors.
    """
    found = header(path)
    with _opened(path) as file, torch.inference_mode(False):
        tensors = {name: file.get_tensor(name).clone() for name in sorted(found.tensors)}
    if not tensors:
        raise ValueError(f"'{plain(path.name)}' holds no tensors.")
    return AdapterFile(tensors, dict(found.metadata), plain(path.stem))


def read_some(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read some tensors of a safetensors file, and no byte of the others; nothing keeps it open or mapped afterwards.

    Args:
        path: The file.
        names: Their names.

    Returns:
        Tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, cut off, or has no such tensor.
    """
    with _opened(path) as file, torch.inference_mode(False):
        return {name: file.get_tensor(name).clone() for name in names}


def names(path: Path) -> list[str]:
    """The names of a file's tensors, none of which is read.

    Args:
        path: The file.

    Returns:
        Names in their order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or cut off.
    """
    return sorted(header(path).tensors)


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a file; none of its tensors is read.

    Args:
        path: The file.

    Returns:
        Text by text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or cut off.
    """
    return dict(header(path).metadata)


def header(path: Path) -> Header:
    """What a file says of itself, with PEFT's settings beside it; none of its tensors is read.

    Args:
        path: The file.

    Returns:
        Kinds, shapes and places of its tensors, and metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or cut off.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file '{plain(path.name)}' in '{plain(path.parent.name)}'."
        )
    found = read_header(path)
    return replace(found, metadata={**beside(path), **found.metadata})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"'{plain(path.name)}' ({path.stat().st_size} bytes) cannot be read by the library safetensors: {error}. "
            "Save or download it again."
        ) from error


def ranks(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, float]]:
    """Rank and alpha of every LoRA pair in ``tensors``, by the prefix of its keys.

    Args:
        tensors: ``<prefix>.lora_down.weight`` ``[r, in, ...]``, ``<prefix>.lora_up.weight``
            ``[out, r, ...]`` and ``<prefix>.alpha`` ``[]``; alpha is the rank where it is absent.

    Returns:
        Pairs of rank and alpha.
    """
    suffix = ".lora_down.weight"
    found = {}
    for key, down in tensors.items():
        if key.endswith(suffix):
            prefix, rank = key.removesuffix(suffix), int(down.shape[0])
            alpha = tensors.get(f"{prefix}.alpha")
            found[prefix] = (rank, float(rank if alpha is None else alpha.item()))
    return found


def describe(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The metadata that tensors speak for: kohya's network keys and the hash of the data.

    A number is ``Dynamic`` where layers differ, as the tools that resize LoRA files write it; convolutions larger than
    1x1 count for themselves, as ``conv_dim`` and ``conv_alpha``. Other kinds than LoRA are called as LyCORIS does.
    """
    wide: list[tuple[int, float]] = []
    rest: list[tuple[int, float]] = []
    for prefix, pair in ranks(tensors).items():
        kernels = [
            tensors[f"{prefix}.{key}"].shape[2:] for key in _KERNELS if f"{prefix}.{key}" in tensors
        ]
        (wide if any(kernel.numel() > 1 for kernel in kernels) else rest).append(pair)
    dim, alpha = _shared(rest or wide)
    args = dict(zip(("conv_dim", "conv_alpha"), _shared(wide), strict=True)) if wide else {}
    algorithms = [name for mark, name in _ALGORITHMS.items() if any(mark in key for key in tensors)]
    if algorithms:
        blocks = [tensors[key].ndim for key in tensors if key.endswith(".oft_blocks")]
        args["algo"] = "boft" if 4 in blocks else algorithms[0]
    module = "lycoris.kohya" if algorithms else "networks.lora"
    if tensors and all(is_bottleneck(key) for key in tensors):
        module = "graft.bottleneck"
        dim = _shared((len(t), 0.0) for key, t in tensors.items() if key.endswith(".down.bias"))[0]
    return {
        "ss_network_module": module,
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(args, sort_keys=True),
        "sshs_model_hash": data_hash(tensors),
    }


def _shared(pairs: Iterable[tuple[int, float]]) -> tuple[str, str]:
    """Rank and alpha that all have, each ``Dynamic`` where they differ."""
    listed = list(pairs)
    dims, alphas = {dim for dim, _ in listed}, {alpha for _, alpha in listed}
    dim = f"{min(dims)}" if len(dims) == 1 else "Dynamic"
    return dim, f"{min(alphas):g}" if len(alphas) == 1 else "Dynamic"


def data_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of what follows the header in the file: the model hash of the kohya tools."""
    digest = hashlib.sha256()
    pieces = serialize(tensors)
    next(pieces)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _check(name: str, tensor: torch.Tensor) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(f"{name!r} cannot be the name of a tensor.")
    if tensor.is_meta or tensor.layout != torch.strided:
        raise ValueError(f"'{name}' has no plain values to write (a meta or sparse tensor).")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"'{name}' is {tensor.dtype}, which safetensors files do not hold.")


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
