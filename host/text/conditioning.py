# SPDX-License-Identifier: Apache-2.0
"""From captions to model inputs, by the CLIP on the wire and the model's own `extra_conds`.

Nothing here knows a family: any text encoder and any model that ComfyUI can prompt goes the same way. Items are
batched as `comfy.samplers` batches prompts: what it would concatenate runs together, the rest in groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

UNTRAINABLE = ("area", "control", "gligen", "hooks", "mask")
TEXT_WIDTHS = ("context_dim", "context_in_dim", "text_dim", "cap_feat_dim", "joint_attention_dim")
TEXT_LAYERS = ("txt_in", "context_embedder", "cap_embedder", "text_embedding", "caption_projection")
_BRACKET = re.compile(r"(?<!\\)[()]")


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text as the encoder left it, on the CPU in fp32.

    Attributes:
        text: token embeddings ``[1, T, C]``.
        extras: what came with them: ``pooled_output`` ``[1, P]``, ``attention_mask``, ...
    """

    text: torch.Tensor
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_conditioning(cls, conditioning: Sequence[Any]) -> Encoded:
        """Take a CONDITIONING from the wire.

        Args:
            conditioning: pairs of a tensor and a dict; one pair.

        Returns:
            A copy on the CPU.

        Raises:
            ValueError: it holds several prompts, or something that belongs to sampling only.
        """
        if len(conditioning) != 1:
            raise ValueError(
                f"a CONDITIONING for training holds one prompt, this one {len(conditioning)}: "
                "connect it from before nodes that combine or schedule prompts"
            )
        text, extras = conditioning[0]
        unfit = sorted(k for k in UNTRAINABLE if extras.get(k) is not None)
        if unfit:
            raise ValueError(
                f"a CONDITIONING for training cannot carry {', '.join(unfit)}: "
                "connect the plain prompt"
            )
        with torch.inference_mode(False), torch.no_grad():
            return cls(_own(text), {k: _own(v) for k, v in extras.items()})

    def conditioning(self) -> list[Any]:
        """The CONDITIONING again, for the host's sampler."""
        return [[self.text, dict(self.extras)]]


def encode_texts(
    clip: Any, texts: Sequence[str], poll: Callable[[], None] = lambda: None
) -> dict[str, Encoded]:
    """Encode texts with the CLIP on the wire, each distinct one once.

    Args:
        clip: a CLIP; its own LoRAs and layer settings count.
        texts: in any number and with repetitions.
        poll: called before each distinct one; may raise to interrupt.

    Returns:
        The encoding of each of ``texts``.

    Raises:
        ValueError: the CLIP is scheduled by hooks.
    """
    encoded = {}
    for text in dict.fromkeys(texts):
        poll()
        encoded[text] = encode_text(clip, text)
    return encoded


def literal(text: str) -> str:
    """The prompt that stands for a text, its brackets being brackets and not weights.

    ComfyUI takes a backslash before a bracket for that (`escape_important`). One that is there already stays, as
    taggers write it: a prompt that has brackets would have to be written like that, too.

    Args:
        text: a caption.

    Returns:
        The prompt; the text itself where it has no brackets.
    """
    return _BRACKET.sub(r"\\\g<0>", text)


def encode_text(clip: Any, text: str) -> Encoded:
    """Encode one text as the CLIPTextEncode node does, without gradients.

    Args:
        clip: a CLIP.
        text: the prompt, in which brackets are weights; see `literal`.

    Returns:
        Its encoding.

    Raises:
        ValueError: the CLIP is scheduled by hooks.
    """
    if getattr(clip.patcher, "forced_hooks", None) or getattr(clip, "apply_hooks_to_conds", None):
        raise ValueError(
            "the CLIP carries hooks: connect the CLIP from before the hook nodes for training"
        )
    with torch.inference_mode():
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return Encoded.from_conditioning(conditioning)


def family_check(model: Any, clip: Any, encoded: Encoded | None = None) -> None:
    """Raise when the CLIP's texts do not fit the MODEL, by the widths of what it makes.

    Args:
        model: a ModelPatcher or BaseModel.
        clip: the CLIP on the wire.
        encoded: any text that this CLIP has encoded; a short one is encoded when it is missing.

    Raises:
        ValueError: names both families and their widths.
    """
    base = getattr(model, "model", model)
    encoded = encoded or encode_text(clip, "a")
    names = (_clip_name(clip), type(base.model_config).__name__)
    want, have = _text_width(base), encoded.text.shape[-1]
    if want is not None and want != have:
        raise ValueError(_mismatch(*names, "text", have, want))
    config = base.model_config.unet_config
    label = config.get("adm_in_channels") or config.get("vec_in_dim")
    pooled = encoded.extras.get("pooled_output")
    if isinstance(label, int):
        if pooled is None:
            raise ValueError(_mismatch(*names, "pooled text", 0, label))
        item = Conditioner(base, "cpu").per_item(encoded, width=512, height=512)
        made = item.conds["y"].cond.shape[-1] if "y" in item.conds else label
        if made != label:
            have = pooled.shape[-1]
            raise ValueError(_mismatch(*names, "pooled text", have, have + label - made))


def _mismatch(clip: str, model: str, part: str, have: int, want: int) -> str:
    return (
        f"the CLIP ({clip}) makes {part} of width {have}, the MODEL ({model}) takes {want}: connect "
        "the CLIP that belongs to this model (the same checkpoint loader, or the CLIP loader type "
        "of the model)"
    )


def _clip_name(clip: Any) -> str:
    name = type(clip.cond_stage_model).__name__.rstrip("_")
    return name.removesuffix("Model").removesuffix("Clip") or name


def _text_width(base: Any) -> int | None:
    config = base.model_config.unet_config
    embedder = config.get("context_embedder_config")
    if embedder:
        return embedder["params"]["in_features"]
    for key in TEXT_WIDTHS:
        width = config.get(key)
        width = width[0] if isinstance(width, list | tuple) and width else width
        if isinstance(width, int):
            return width
    for name in TEXT_LAYERS:
        layer = getattr(base.diffusion_model, name, None)
        if isinstance(layer, nn.Module):
            for module in layer.modules():
                width = getattr(module, "in_features", None)
                if isinstance(width, int):
                    return width
    return None


@dataclass(frozen=True, eq=False)
class ItemCond:
    """Model inputs of one item: the host's COND objects, on the CPU."""

    conds: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(_bytes(cond.cond) for cond in self.conds.values())


@dataclass(frozen=True, eq=False)
class Batch:
    """Model inputs of a batch: per group the items' positions and what `apply_model` takes."""

    groups: tuple[tuple[tuple[int, ...], dict[str, Any]], ...]

    def __len__(self) -> int:
        return sum(len(indices) for indices, _ in self.groups)


class Conditioner:
    """Turns encoded texts and sizes into the inputs of one model.

    Args:
        model: a ModelPatcher or BaseModel.
        device: where the model is loaded, and where `batch` puts the inputs.
    """

    def __init__(self, model: Any, device: torch.device | str):
        self._model = getattr(model, "model", model)
        self._device = torch.device(device)

    def per_item(
        self,
        encoded: Encoded,
        *,
        width: int,
        height: int,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        latent_shape: Sequence[int] | None = None,
    ) -> ItemCond:
        """Make the inputs of one item.

        Args:
            encoded: its text.
            width: of the picture that is trained on, in pixels.
            height: of the same.
            original: (height, width) before scaling and cropping; default: the same.
            crop: (top, left) of the crop.
            latent_shape: of the item's latent without the batch ``(C, h, w)``; default: as the format says.

        Returns:
            Detached inputs, on the CPU; where the text has a gradient, with it.

        Raises:
            ValueError: the model wants nested (audio-video) latents.
        """
        shape = (1, *(latent_shape or self._latent_shape(width, height)))
        sizes = _sizes((height, width), original or (height, width), crop)
        params = {**sizes, **encoded.extras, **self._sampler_params(shape)}
        params["cross_attn"] = encoded.text
        is_live = _is_live(encoded)
        # Some models run text layers here, but only in inference mode, where the sampler calls this.
        with torch.inference_mode(not is_live):
            made = self._model.extra_conds(**params)
            conds = {k: v.process_cond(batch_size=1, area=None) for k, v in made.items()}
        if "latent_shapes" in conds:
            raise ValueError(
                f"{type(self._model).__name__} takes nested (audio-video) latents, "
                "which cannot be trained: use a model with one latent"
            )
        if is_live:
            return ItemCond(conds)
        with torch.inference_mode(False), torch.no_grad():
            return ItemCond({k: v._copy_with(_own(v.cond)) for k, v in conds.items()})

    def batch(self, items: Sequence[ItemCond]) -> Batch:
        """Concatenate items as the sampler does.

        Args:
            items: one or more, in the order of the latents.

        Returns:
            The ``cond`` of `HostDenoiser`, on the device.
        """
        from comfy.samplers import cond_cat, cond_equal_size

        left = list(range(len(items)))
        groups = []
        while left:
            first = items[left[0]].conds
            same = tuple(i for i in left if cond_equal_size(items[i].conds, first))
            left = [i for i in left if i not in same]
            inputs = cond_cat([items[i].conds for i in same])
            groups.append((same, {k: _to(v, self._device) for k, v in inputs.items()}))
        return Batch(tuple(groups))

    def _sampler_params(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """What the host's sampler tells `extra_conds` for text to image."""
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        return {
            "noise": noise,
            "device": self._device,
            "latent_image": torch.zeros_like(noise),
            "denoise_mask": None,
            "prompt_type": "positive",
            "seed": 0,
        }

    def _latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        latents = self._model.latent_format
        ratio = getattr(latents, "spacial_downscale_ratio", 8)
        frames = (1,) * (latents.latent_dimensions - 2)
        return (latents.latent_channels, *frames, height // ratio, width // ratio)


def _sizes(
    target: tuple[int, int], original: tuple[int, int], crop: tuple[int, int]
) -> dict[str, int]:
    """SDXL's size conditioning by the host's names, from (height, width) and (top, left)."""
    return {
        "width": original[1],
        "height": original[0],
        "crop_w": crop[1],
        "crop_h": crop[0],
        "target_width": target[1],
        "target_height": target[0],
    }


def _is_live(encoded: Encoded) -> bool:
    values = (encoded.text, *encoded.extras.values())
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)


def _own(value: Any) -> Any:
    """A copy on the CPU without history or inference mode; floating numbers in fp32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", copy=True).clone()
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_own(v) for v in value)
    if isinstance(value, dict):
        return {k: _own(v) for k, v in value.items()}
    return value


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(_bytes(v) for v in value)
    return 0


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value
