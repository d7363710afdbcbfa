# SPDX-License-Identifier: Apache-2.0
"""Names of layers as other programs spell them: diffusers' for Stable Diffusion's UNets, kohya's with underscores.

The UNets of SD 1, SD 2 and SDXL have two residual blocks a level, so that a block's number says which level it is in.
"""

import re
from collections.abc import Callable, Iterable

_LEVEL = 3  # blocks a level: two residual ones and the way down; on the way up, three residual ones
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"middle_block\.(\d+)\.(.+)")
_TEXT = re.compile(r"(clip_[lgh])\.transformer\.(.+)")
_ENCODERS = {"clip_l": ("", "1"), "clip_h": ("",), "clip_g": ("2",)}
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_ROOTS = ("model.diffusion_model.", "diffusion_model.", "unet.")


def diffusers(name: str) -> str | None:
    """What diffusers calls a layer of a UNet of Stable Diffusion; None for other names."""
    if name in _ENDS:
        return _ENDS[name]
    if found := _MIDDLE.fullmatch(name):
        part, rest = int(found[1]), found[2]
        return (
            f"mid_block.attentions.0.{rest}"
            if part == 1
            else f"mid_block.resnets.{part // 2}.{_RESIDUAL.get(rest, rest)}"
        )
    if not (found := _BLOCK.fullmatch(name)):
        return None
    is_down, part, rest = found[1] == "input", int(found[3]), found[4]
    number = int(found[2]) - is_down
    level = f"{'down' if is_down else 'up'}_blocks.{number // _LEVEL}"
    if rest == "op":
        return f"{level}.downsamplers.0.conv"
    if rest == "conv":
        return f"{level}.upsamplers.0.conv"
    if part == 0:
        return f"{level}.resnets.{number % _LEVEL}.{_RESIDUAL.get(rest, rest)}"
    return f"{level}.attentions.{number % _LEVEL}.{rest}"


def text(name: str) -> tuple[str, ...]:
    """What diffusers and kohya call a layer of a text encoder, with dots."""
    found = _TEXT.fullmatch(name)
    if not found:
        return ()
    numbers = _ENCODERS[found[1]]
    spelled = [f"text_encoder{'_2' if n == '2' else ''}.{found[2]}" for n in numbers]
    return tuple(dict.fromkeys([*spelled, *(f"te{n}.{found[2]}" for n in numbers)]))


def spelled(names: Iterable[str], matches: Callable[[str], bool], part: str) -> set[str]:
    """The names that a pattern selects when it is spelled as another program has it.

    Args:
        names: The model's own.
        matches: Whether the pattern fits a name with dots.
        part: The pattern.
    """
    names = list(names)
    is_regular = _is_regular(names)
    known = {name: (name, *_others(name, is_regular)) for name in names}
    if part.startswith(_KOHYA):
        start = part.removeprefix("lora_").removeprefix("unet_").rstrip("_")
        return {
            name
            for name, every in known.items()
            if any(f"{one.replace('.', '_')}_".startswith(f"{start}_") for one in every)
        }
    return {name for name, every in known.items() if any(map(matches, every))}


def bare(part: str) -> str:
    """A pattern without the name of the whole model before it."""
    for root in _ROOTS:
        if part.startswith(root):
            return part.removeprefix(root)
    return part


def _others(name: str, is_regular: bool) -> tuple[str, ...]:
    other = diffusers(name) if is_regular else None
    return (*([other] if other else []), *text(name))


def _is_regular(names: list[str]) -> bool:
    """Whether the ways down and up that are among the names are where two residual blocks a level have them."""
    for name in names:
        found = _BLOCK.fullmatch(name)
        if found and found[4] in ("op", "conv"):
            if int(found[2]) % _LEVEL != (0 if found[1] == "input" else _LEVEL - 1):
                return False
    return True
