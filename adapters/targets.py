# SPDX-License-Identifier: Apache-2.0
"""The block language: which modules of a model an adapter is attached to.

A selection is a comma-separated list of presets and patterns over the model's own module names;
``-pattern`` takes away. A pattern matches whole dot-separated segments from any point of the name
on: ``attn2`` is every cross-attention, ``output_blocks.*.attn2`` those of the decoder, where ``*``
alone stands for one or more segments.
"""

import re
from functools import lru_cache

from torch import nn

from ..registry import unknown

NONE = "none"  # a selection of its own
PRESETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "attention": ("*attn*", "attention", "single_blocks.*.linear[12]"),
    "cross-attention": ("attn2", "cross_attn"),
    "transformer": (
        "transformer_blocks",
        "proj_in",
        "proj_out",
        "double_blocks",
        "single_blocks",
        "joint_blocks",
        "layers",
        "blocks",
    ),
}


def kind(module: nn.Module) -> str | None:
    """``"linear"``, ``"conv"`` or None, by what the module has and not by its class.

    ComfyUI's quantised linear layers are no ``nn.Linear``, and weights may not be there yet.
    """
    if (
        hasattr(module, "in_features")
        and hasattr(module, "out_features")
        and hasattr(module, "weight")
    ):
        return "linear"
    if (
        hasattr(module, "kernel_size")
        and hasattr(module, "in_channels")
        and hasattr(module, "stride")
    ):
        return None if getattr(module, "transposed", False) else "conv"
    return None


def targets(root: nn.Module, blocks: str) -> tuple[str, ...]:
    """Names of the linear and convolution modules of ``root`` that ``blocks`` selects; ``none`` selects none.

    Raises:
        ValueError: A part of the selection, or the whole of it, matches nothing; lists near names.
    """
    if blocks.strip() == NONE:
        return ()
    names = [name for name, module in root.named_modules() if kind(module)]
    chosen: set[str] = set()
    parts = [part.strip() for part in blocks.replace("\n", ",").split(",") if part.strip()]
    if parts and parts[0].startswith("-"):
        chosen.update(names)
    for part in parts:
        matched = _select(names, part.removeprefix("-").strip())
        if part.startswith("-"):
            chosen -= matched
        else:
            chosen |= matched
    if not chosen:
        raise ValueError(f"The block selection '{blocks}' leaves no layer to train.")
    return tuple(name for name in names if name in chosen)


def _select(names: list[str], part: str) -> set[str]:
    patterns = [_compiled(pattern) for pattern in PRESETS.get(part, (part,))]
    matched = {name for name in names if any(pattern.search(name) for pattern in patterns)}
    if not matched:
        segments = {
            segment for name in names for segment in name.split(".") if not segment.isdigit()
        }
        known = [preset for preset in PRESETS if _any_match(names, preset)] + sorted(segments)
        raise ValueError(
            f"The block selection '{part}' matches no layer of this model. {unknown('block', part, known)}"
        )
    return matched


def _any_match(names: list[str], preset: str) -> bool:
    return any(_compiled(pattern).search(name) for pattern in PRESETS[preset] for name in names)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    segments = [
        r"[^.]+(?:\.[^.]+)*" if segment == "*" else _glob(segment)
        for segment in pattern.strip(".").split(".")
    ]
    try:
        return re.compile(r"(?:^|\.)" + r"\.".join(segments) + r"(?=\.|$)")
    except re.error as error:
        raise ValueError(f"The block pattern '{pattern}' is malformed: {error}.") from error


def _glob(segment: str) -> str:
    pieces = re.split(r"(\*|\?|\[[^\[\]]+\])", segment)
    known = {"*": "[^.]*", "?": "[^.]"}
    return "".join(known.get(p, p if p.startswith("[") else re.escape(p)) for p in pieces)
