# SPDX-License-Identifier: Apache-2.0
"""The block language: which modules of a model an adapter is attached to.

A selection is a comma-separated list of presets and patterns over the model's own module names;
``-pattern`` takes away. A pattern matches whole dot-separated segments from any point of the name
on: ``attn2`` is every cross-attention, ``output_blocks.*.attn2`` those of the decoder, where ``*``
alone stands for one or more segments.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from torch import nn

from ..plain import plain
from ..registry import unknown
from .spellings import bare, spelled

MAX_PATTERN, MAX_STARS, MAX_STARS_EACH = (
    1000,
    8,
    3,
)  # more than anyone needs, and less than takes minutes
NONE = "none"  # a selection of its own
PRESETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "attention": ("*attn*", "attention", "single_blocks.*.linear[12]", "attentions.*.to_*"),
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
    "cross-attention kv": ("attn2.to_[kv]", "cross_attn.[kv]", "cross_attn.to_[kv]", "kv_linear"),
    # Frenkel et al. 2024 (arXiv 2403.14572): the attentions of two blocks of SDXL.
    "b-lora content": ("output_blocks.0.1.*.attn[12]",),
    "b-lora style": ("output_blocks.1.1.*.attn[12]",),
    "b-lora": ("output_blocks.0.1.*.attn[12]", "output_blocks.1.1.*.attn[12]"),
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


def norm(module: nn.Module) -> str | None:
    """The name of the scale of a normalization, ``"weight"`` or ``"scale"``; None for all else, and without a scale."""
    if "norm" not in type(module).__name__.lower() or next(module.children(), None) is not None:
        return None
    own = module._parameters
    return next((n for n in ("weight", "scale") if getattr(own.get(n), "ndim", 0) == 1), None)


def is_table(module: nn.Module) -> bool:
    """Whether a module is a table of classes: an embedding that its network says so of."""
    return bool(getattr(module, "takes_labels", False))


def targets(
    root: nn.Module, blocks: str, norms: bool = False, tables: bool = False
) -> tuple[str, ...]:
    """Names of the linear and convolution modules of ``root`` that ``blocks`` selects; ``none`` selects none.

    Args:
        root: The model.
        blocks: The selection.
        norms: Whether normalizations that have a scale are selected, too.
        tables: Likewise tables of classes.

    Raises:
        ValueError: A part of the selection, or the whole of it, matches nothing; lists near names.
    """
    if blocks.strip() == NONE:
        return ()
    names = [
        name
        for name, module in root.named_modules()
        if kind(module) or (norms and norm(module) is not None) or (tables and is_table(module))
    ]
    return chosen(names, blocks)


def chosen(names: Sequence[str], blocks: str, what: str = "The block selection") -> tuple[str, ...]:
    """Those of the names of layers that ``blocks`` selects, in their order.

    Args:
        names: Names of layers.
        blocks: Presets and patterns.
        what: Where it stands, for the message.

    Raises:
        ValueError: A part of the selection, or the whole of it, matches nothing; lists near names.
    """
    found: set[str] = set()
    parts = [part.strip() for part in blocks.replace("\n", ",").split(",") if part.strip()]
    if parts and parts[0].startswith("-"):
        found.update(names)
    for part in parts:
        matched = matching(names, part.removeprefix("-").strip(), what)
        if part.startswith("-"):
            found -= matched
        else:
            found |= matched
    if not found:
        end = "to train" if what.startswith("The") else "of those that are trained"
        raise ValueError(f"{what} '{plain(blocks, 200)}' leaves no layer {end}.")
    return tuple(name for name in names if name in found)


def matching(
    names: Sequence[str], part: str, what: str = "The block selection", of: str = ""
) -> set[str]:
    """The names that a preset or pattern selects.

    Args:
        names: Names of layers.
        part: A preset or a pattern.
        what: Where it stands, for the message.
        of: Which layers they are, for the message.

    Raises:
        ValueError: It matches none of them; lists near names.
    """
    patterns = [_compiled(pattern) for pattern in PRESETS.get(part, (bare(part),))]

    def matches(name: str) -> bool:
        return any(pattern.search(name) for pattern in patterns)

    matched = set(filter(matches, names)) or spelled(names, matches, part)
    if not matched:
        segments = {
            segment for name in names for segment in name.split(".") if not segment.isdigit()
        }
        known = [preset for preset in PRESETS if _any_match(names, preset)] + sorted(segments)
        of = of or ("of this model" if what.startswith("The") else "that is trained")
        raise ValueError(
            f"{what} '{plain(part, 100)}' matches no layer {of}. {unknown('block', part, known)}"
        )
    return matched


def _any_match(names: Sequence[str], preset: str) -> bool:
    return any(_compiled(pattern).search(name) for pattern in PRESETS[preset] for name in names)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    stars = [len(re.findall(r"\*[*?]*", segment)) for segment in pattern.split(".")]
    if sum(stars) > MAX_STARS or max(stars) > MAX_STARS_EACH or len(pattern) > MAX_PATTERN:
        raise ValueError(
            f"The block pattern '{plain(pattern, 100)}' has {len(pattern)} characters and {sum(stars)} stars; up to "
            f"{MAX_PATTERN} and {MAX_STARS} are possible, {MAX_STARS_EACH} of them between two dots."
        )
    segments = [
        r"[^.]+(?:\.[^.]+)*" if segment == "*" else _glob(segment)
        for segment in pattern.strip(".").split(".")
    ]
    try:
        return re.compile(r"(?:^|\.)" + r"\.".join(segments) + r"(?=\.|$)")
    except re.error as error:
        raise ValueError(f"The block pattern '{plain(pattern)}' is malformed: {error}.") from error


def _glob(segment: str) -> str:
    return "".join(map(_piece, re.split(r"([*?]+|\[[^\[\]]+\])", segment)))


def _piece(piece: str) -> str:
    if piece[:1] in (
        "*",
        "?",
    ):  # one repetition for a run of them: two in a row try every way to share the letters
        return f"[^.]{{{piece.count('?')},{'' if '*' in piece else piece.count('?')}}}"
    return piece if piece.startswith("[") and len(piece) > 1 else re.escape(piece)
