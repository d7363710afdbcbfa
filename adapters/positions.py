# SPDX-License-Identifier: Apache-2.0
"""Where a bottleneck adapter reads and where it adds, by the names of Xiang et al. 2023 (sec. 4.1; arXiv 2303.18181).

A transformer block computes attn1o = attn1(norm(attn1i)), attn2i = attn1i + attn1o, attn2o = attn2(norm(attn2i),
attn2c), ffni = attn2i + attn2o, ffno = ff(norm(ffni)) and transo = ffni + ffno; a residual block has resi and reso.
"""

import re
from typing import Any

from torch import nn

from ..plain import plain
from ..registry import unknown
from .targets import NONE, kind, matching

Pair = tuple[str, str]

STREAMS = ("attn1i", "attn2i", "ffni", "transo")
FLOW = ("attn1i", "attn1o", "attn2i", "attn2o", "ffni", "ffno", "transo")
CONTEXT, INPUT, OUTPUT = "attn2c", "resi", "reso"
LEGAL: dict[str, tuple[str, ...]] = {
    **{din: tuple(s for s in STREAMS if FLOW.index(s) >= FLOW.index(din)) for din in FLOW},
    CONTEXT: (CONTEXT,),
    INPUT: (INPUT, OUTPUT),
    OUTPUT: (OUTPUT,),
}
PAIRS: tuple[Pair, ...] = tuple((din, dout) for din, douts in LEGAL.items() for dout in douts)
# "In series" with a part is on its output, "parallel" to it from its input to its output.
ALIASES: dict[str, Pair] = {
    "seq-attn1": ("attn1o", "attn2i"),
    "seq-attn2": ("attn2o", "ffni"),
    "seq-ffn": ("ffno", "transo"),
    "seq-whole": ("transo", "transo"),
    "seq-res": ("reso", "reso"),
    "para-attn1": ("attn1i", "attn2i"),
    "para-attn2": ("attn2i", "ffni"),
    "para-ffn": ("ffni", "transo"),
    "para-whole": ("attn1i", "transo"),
    "para-res": ("resi", "reso"),
    "cross-attn2": ("attn2c", "attn2c"),
}
TRANSFORMER, RESIDUAL = "transformer block", "residual block"
_TRANSFORMER_PARTS = ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")
_RESIDUAL_PARTS = ("in_layers", "out_layers", "skip_connection", "emb_layers")


def read(text: str) -> tuple[Pair, ...]:
    """The pairs that a setting names.

    Args:
        text: ``din-dout`` pairs, or names such as ``seq-attn2``, with semicolons, commas or new lines between them.

    Raises:
        ValueError: One is unknown, given twice, or cannot be: its output is not reached from its input.
    """
    found: list[Pair] = []
    for part in filter(None, map(str.strip, re.split(r"[;,\n]", text))):
        pair = ALIASES.get(part) or _pair(part)
        if pair in found:
            raise ValueError(f"positions names {'-'.join(pair)} twice; once is enough.")
        found.append(pair)
    if not found:
        raise ValueError(
            "positions is empty; give one or several pairs of an input and an output, such as attn2o-ffni."
        )
    return tuple(found)


def _pair(part: str) -> Pair:
    din, separator, dout = (piece.strip() for piece in part.partition("-"))
    if not separator:
        raise ValueError(
            f"'{plain(part, 100)}' in positions must read input-output, such as attn2o-ffni."
        )
    if din not in LEGAL:
        raise ValueError(unknown("input of a bottleneck adapter", din, LEGAL))
    if dout not in LEGAL[din]:
        raise ValueError(
            f"A bottleneck adapter cannot go from {din} to '{plain(dout, 100)}', which does not come after it or has "
            f"another shape; from {din} it can go to {' or '.join(LEGAL[din])}."
        )
    return din, dout


def kind_of(pair: Pair) -> str:
    """The kind of block that a pair is in."""
    return RESIDUAL if pair[0] in (INPUT, OUTPUT) else TRANSFORMER


def block_kind(module: Any) -> str | None:
    """The kind of block that a module is, by its parts; None for one that no adapter fits.

    Blocks with a feed-forward before the first attention (of video models), and residual blocks that change the size
    of what goes through, are none.
    """
    if all(isinstance(getattr(module, part, None), nn.Module) for part in _TRANSFORMER_PARTS):
        return None if getattr(module, "ff_in", False) else TRANSFORMER
    if all(isinstance(getattr(module, part, None), nn.Module) for part in _RESIDUAL_PARTS):
        convolution: Any = module.in_layers[-1]
        is_flat = kind(convolution) == "conv" and len(convolution.kernel_size) == 2
        return RESIDUAL if is_flat and not getattr(module, "updown", False) else None
    return None


def widths(block: Any, pair: Pair) -> tuple[int, int]:
    """Channels of a pair's input and output in a block.

    Raises:
        ValueError: The block is of another kind, or has no text context of its own.
    """
    found = block_kind(block)
    if found != kind_of(pair):
        raise ValueError(
            f"{'-'.join(pair)} belongs into a {kind_of(pair)}, and this is {found or type(block).__name__}."
        )
    if found == RESIDUAL:
        first, last = (int(part[0].num_channels) for part in (block.in_layers, block.out_layers))
        return last if pair[0] == OUTPUT else first, first if pair[1] == INPUT else last
    if pair[0] == CONTEXT:
        if getattr(block, "switch_temporal_ca_to_sa", False):
            raise ValueError(
                "Its second attention sees no text, so that attn2c has no place in it."
            )
        return (int(block.attn2.to_k.in_features),) * 2
    if pair[0] == "attn1i" or pair[1] == "attn1i" or pair[0] == "attn1o":
        _check_self_attention(block, pair)
    width = int(block.norm1.normalized_shape[-1])
    return width, width


def _check_self_attention(block: Any, pair: Pair) -> None:
    if getattr(block, "disable_self_attn", False):
        raise ValueError(
            f"Its first attention looks at the text, so that {'-'.join(pair)} means something else in it; leave the "
            "block out of blocks, or choose positions from attn2i on."
        )


def chosen(root: nn.Module, blocks: str, kinds: set[str]) -> tuple[str, ...]:
    """Names of the blocks of some kinds that a selection of the block language takes.

    A part of it takes a block when it matches the block's name or that of a layer in it, and takes a block away when it
    matches the block's own name.

    Args:
        root: The model.
        blocks: The selection.
        kinds: Of blocks.

    Raises:
        ValueError: The model has no such blocks, or a part of the selection or all of it takes none.
    """
    if blocks.strip() == NONE:
        return ()
    found = {n: m for n, m in root.named_modules() if block_kind(m) in kinds}
    missing = kinds - {block_kind(m) for m in found.values()}
    if missing:
        raise ValueError(
            f"Bottleneck adapters sit in the blocks of a UNet, as SD1, SD2 and SDXL have them; {type(root).__name__} "
            f"has no {' and no '.join(sorted(missing))} with these parts. Choose another network, such as lora."
        )
    owners = {
        name if not inner else f"{name}.{inner}": name
        for name, module in found.items()
        for inner, _ in module.named_modules()
    }
    parts = [part.strip() for part in blocks.replace("\n", ",").split(",") if part.strip()]
    taken = set(found) if parts and parts[0].startswith("-") else set()
    for part in parts:
        if part.startswith("-"):
            taken -= matching(list(found), part.removeprefix("-").strip())
        else:
            taken |= {owners[name] for name in matching(list(owners), part)}
    for kind_ in sorted(kinds):
        if not any(block_kind(found[name]) == kind_ for name in taken):
            raise ValueError(
                f"The block selection '{plain(blocks, 200)}' takes no {kind_}, in which positions has an adapter; set "
                "blocks to all, or choose other positions."
            )
    return tuple(name for name in found if name in taken)
