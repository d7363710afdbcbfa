# SPDX-License-Identifier: Apache-2.0
"""Names of layers in files, of every dialect, as ComfyUI's generic ones and back.

The generic name of a layer is ``diffusion_model.<module>`` or ``text_encoders.<encoder>.transformer.<module>``, with
the model's own modules: those of the first Stable Diffusion for its UNets. Names with underscores for dots are read
with the words that have an underscore of their own; diffusers' names are read by the place of a block (adapters/
spellings.py has the other way).
"""

import re
from collections.abc import Iterable, Mapping

from ...adapters.learned import MODEL, TEXT
from ...adapters.spellings import diffusers as spelled

ENCODERS = {
    "clip_l": "1",
    "clip_g": "2",
    "clip_h": "1",
}  # their numbers in files of a model with two
_LEVEL = 3  # blocks a level, see adapters/spellings.py
_WORDS = (
    "input_blocks output_blocks middle_block time_embed label_emb in_layers out_layers emb_layers skip_connection "
    "transformer_blocks to_q to_k to_v to_out proj_in proj_out down_blocks up_blocks mid_block conv_in conv_out "
    "time_emb_proj conv_shortcut time_embedding add_embedding class_embedding linear_1 linear_2 conv_norm_out "
    "text_model self_attn "
    "q_proj k_proj v_proj out_proj text_projection final_layer_norm layer_norm1 layer_norm2 token_embedding "
    "position_embedding double_blocks single_blocks img_attn txt_attn img_mod txt_mod img_mlp txt_mlp img_in txt_in "
    "time_in vector_in guidance_in final_layer in_layer out_layer adaLN_modulation joint_blocks context_block x_block "
    "context_embedder x_embedder y_embedder t_embedder pos_embed query_norm key_norm single_transformer_blocks "
    "time_text_embed norm_out add_q_proj add_k_proj add_v_proj to_add_out"
)
_WORD = re.compile(
    "|".join(sorted((re.escape(word) for word in _WORDS.split()), key=len, reverse=True))
)
_FLAT = re.compile(rf"({_WORD.pattern})(?=_|$)|([^_]+)")
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_THEIRS = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+?)\.(\d+)\.(.+)")
_ROOTS = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "unet.",
    "transformer.",
)
_FLAT_ROOTS = ("lora_unet_", "oft_unet_", "lycoris_", "lora_transformer_")
_FLAT_TEXT = re.compile(r"lora_te([123]?)_(.+)")
_TEXT = re.compile(
    r"(?:text_encoder|te)(_?[123]?)\.(?:base_model\.model\.)?(?:text_encoder\.)?(.+)"
)
_OLD_TEXT = re.compile(r"self_attn\.to_(q|k|v|out)$")


class Spelling:
    """How diffusers calls the layers of one model's UNet, and back.

    Args:
        known: Its names by the model's own modules, where the host knows them; by the rule of Stable Diffusion's UNets
            otherwise.
        named: Some of the names of a file, by which the kinds of UNets are told apart.
    """

    def __init__(self, known: Mapping[str, str] | None = None, named: Iterable[str] = ()) -> None:
        self._known = known
        self._own = {theirs: own for own, theirs in (known or {}).items()}
        text = " ".join(named).replace("_", ".")
        # The way up has attention in its first level in SDXL, and none there in SD 1 and 2.
        self._attends_first = "up.blocks.0.attentions" in text or not any(
            mark in text for mark in ("blocks.3.", "up.blocks.2.attentions", "down.blocks.0.att")
        )

    def theirs(self, module: str) -> str | None:
        """diffusers' name of a module of a UNet; None where it has none."""
        return spelled(module) if self._known is None else self._known.get(module)

    def own(self, name: str) -> str:
        """The model's own name of what diffusers calls so; the name itself where it is the model's own."""
        if self._known is not None:
            return self._own.get(name, name)
        if name in _ENDS:
            return _ENDS[name]
        if not (found := _THEIRS.fullmatch(name)):
            return name
        way, level, part, number, rest = (
            found[1],
            int(found[2] or 0),
            found[3],
            int(found[4]),
            found[5],
        )
        if part == "resnets":
            rest = _RESIDUAL.get(rest, rest)
        if way is None:
            return f"middle_block.{2 * number if part == 'resnets' else 1}.{rest}"
        if part == "downsamplers":
            return f"input_blocks.{_LEVEL * (level + 1)}.0.op"
        if part == "upsamplers":
            after = 2 if level or self._attends_first else 1
            return f"output_blocks.{_LEVEL * level + _LEVEL - 1}.{after}.conv"
        block = _LEVEL * level + number + (way == "down")
        side = "input" if way == "down" else "output"
        return f"{side}_blocks.{block}.{0 if part == 'resnets' else 1}.{rest}"


def dotted(flat: str) -> str:
    """A name with dots, from one with underscores in their place."""
    return ".".join(found[0] for found in _FLAT.finditer(flat))


def generic(name: str, spelling: Spelling, width: int = 0) -> tuple[str, str]:
    """The generic name of a layer and what kind of name it has in the file.

    Args:
        name: The layer's name in a file, of any dialect.
        spelling: How diffusers calls the model's layers.
        width: Of what the layer reads, by which the encoder of SD 2 is told from that of SD 1.

    Returns:
        The name, and ``generic``, ``flat`` (underscores), ``unet`` (diffusers'), ``peft`` or ``bare``, with ``own`` or
        ``theirs`` after it for what the modules are called.
    """
    for start in (TEXT, "clip_l.", "clip_g.", "clip_h.", "t5xxl."):
        if name.startswith(start):
            return f"{TEXT}{name.removeprefix(TEXT)}", "generic own"
    if found := _FLAT_TEXT.fullmatch(name):
        return _encoder(found[1], dotted(found[2]), width), "flat text"
    if found := _TEXT.fullmatch(name):
        module = _OLD_TEXT.sub(r"self_attn.\1_proj", found[2])
        return _encoder(found[1].strip("_"), module, width), "unet text"
    for root in _FLAT_ROOTS:
        if name.startswith(root):
            return _of_model(dotted(name.removeprefix(root)), spelling, "flat")
    bare, kind = name, "bare"
    while root := next((root for root in _ROOTS if bare.startswith(root)), ""):
        kind = {"base_model.model.": "peft", "unet.": "unet", "transformer.": "unet"}.get(
            root, "generic"
        )
        bare = bare.removeprefix(root)
    bare = bare.replace(".processor.", ".")
    return _of_model(f"{bare}.0" if bare.endswith(".to_out") else bare, spelling, kind)


def kohya(name: str, spelling: Spelling | None, has_two: bool) -> str | None:
    """The name with underscores of a generic name; diffusers' modules where a spelling is given."""
    if name.startswith(TEXT):
        encoder, _, module = name.removeprefix(TEXT).partition(".transformer.")
        number = (ENCODERS.get(encoder) if has_two else "") if encoder in ENCODERS else None
        return None if number is None else f"lora_te{number}_{module.replace('.', '_')}"
    module = name.removeprefix(MODEL)
    named = module if spelling is None else spelling.theirs(module)
    return None if named is None else f"lora_unet_{named.replace('.', '_')}"


def diffusers(name: str, spelling: Spelling) -> str | None:
    """diffusers' name, with dots, of a generic name; None where it has none."""
    if name.startswith(TEXT):
        encoder, _, module = name.removeprefix(TEXT).partition(".transformer.")
        if encoder not in ENCODERS:
            return None
        return f"text_encoder{'_2' if encoder == 'clip_g' else ''}.{module}"
    named = spelling.theirs(name.removeprefix(MODEL))
    return None if named is None else f"unet.{named}"


def _of_model(name: str, spelling: Spelling, kind: str) -> tuple[str, str]:
    own = spelling.own(name)
    return f"{MODEL}{own}", f"{kind} {'own' if own == name else 'theirs'}"


def _encoder(number: str, module: str, width: int) -> str:
    if number == "3":
        return f"{TEXT}t5xxl.transformer.{module}"
    first = "clip_h" if width in (1024, 4096) and not number else "clip_l"
    return f"{TEXT}{'clip_g' if number == '2' else first}.transformer.{module}"
