# SPDX-License-Identifier: Apache-2.0
"""The CLIP on the wire, made trainable for a while: texts are encoded with gradients, and nothing else changed."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..memory.residence import forget, give_back, own_weights
from ..model.lending import forwards_of, is_dynamic, on_exit, reload_all, unload
from . import tokens
from .conditioning import Encoded
from .together import encode_each


class TextTrainee:
    """A training clone of a CLIP, loaded. Valid inside `text_trainee` only.

    Args:
        clip: The clone.
        beside: Patchers that have to stay loaded with it.

    Attributes:
        clip: The clone.
        model: Its text encoders.
        device: Where they are.
    """

    def __init__(self, clip: Any, beside: tuple[Any, ...] = ()) -> None:
        self.clip, self._beside = clip, beside
        self.model: nn.Module = clip.patcher.model
        self.device: torch.device = clip.patcher.load_device
        self.reload()

    def reload(self) -> None:
        """Load the encoders fully again, after something else may have evicted them."""
        import comfy.model_management as mm

        with torch.inference_mode(False), torch.no_grad():
            mm.load_models_gpu([self.clip.patcher, *self._beside], force_full_load=True)
            own_weights(self.clip.patcher)
        for p in self.model.parameters():
            p.requires_grad_(False)

    def encode(
        self, texts: Sequence[str], vectors: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> dict[str, Encoded]:
        """Encode prompts as the CLIPTextEncode node does, with gradients to what has them.

        Args:
            texts: The prompts, each another; brackets are weights.
            vectors: New words ``[n, width]``, by name and encoder.

        Returns:
            Their encodings in fp32, where the encoders left them.
        """
        bound = tokens.bind(self.clip, vectors) if vectors else self.clip
        model: Any = self.model
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": self.device})
        # The CLIP's own call would let the host move models about in every step.
        found = encode_each(model, [bound.tokenize(text) for text in texts])
        return dict(zip(texts, map(_encoded, found), strict=True))


def _encoded(found: tuple[Any, ...]) -> Encoded:
    extras = {"pooled_output": found[1]} | (found[2] if len(found) > 2 else {})
    return Encoded(found[0].float(), extras)


@contextmanager
def text_trainee(clip: Any, beside: tuple[Any, ...] = ()) -> Iterator[TextTrainee]:
    """Make the CLIP on the wire trainable while the context lasts, outside inference mode.

    Patches of the wire are part of what is trained on. All weights are frozen.

    Args:
        clip: A CLIP.
        beside: Patchers that have to stay loaded with it: the MODEL's training clone.

    Yields:
        The trainee, loaded.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        residents = unload(clip.patcher)
        on_exit(stack, lambda: reload_all(residents))
        clone = clip.clone(disable_dynamic=True) if is_dynamic(clip.patcher) else clip.clone()
        clone.cond_stage_model = clone.patcher.model
        on_exit(stack, lambda: give_back(clone.patcher))
        on_exit(stack, lambda: forget(clone.patcher))
        own_weights(clone.patcher)
        on_exit(stack, forwards_of(clone.patcher.model))
        out_of_place(clone.patcher.model)
        yield TextTrainee(clone, beside)


def out_of_place(model: nn.Module) -> None:
    """Replace the forward of CLIP's layers, which add in place, by one that autograd takes; equal bit for bit.

    Args:
        model: Any module; its layers get a forward of their own.
    """
    for module in model.modules():
        if type(module).__name__ == tokens.LAYER:
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    x = x + self.self_attn(self.layer_norm1(x), *args, **kwargs)
    return x + self.mlp(self.layer_norm2(x))
