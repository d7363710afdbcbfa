# SPDX-License-Identifier: Apache-2.0
"""Where in the picture the parts of a UNet compute, so that an adapter counts inside of a mask only.

What has a place is convolutions, residual blocks and image tokens. Keys and values of the text have none, but what
attention makes of them has: attention is computed with and without the change, and each token of the picture gets one
of both. A residual block's time embedding is added at every place. The embedding before all blocks has no place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...adapters.targets import kind

_SHARED = "graft_texts"
_OVERRIDE = "optimized_attention_override"
GRID, TOKENS, EMBEDDING, TEXT = "grid", "tokens", "embedding", "text"
_TEXTS = {".attn2.to_k": "k", ".attn2.to_v": "v"}
Size = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a layer computes.

    Attributes:
        kind: What its output is: a grid of pixels, tokens of one, an embedding that is added to one, or of the text.
        block: Name of the module that gets the grid; empty where the output itself is one.
    """

    kind: str
    block: str = ""


def place_of(root: nn.Module, name: str) -> Place | None:
    """Where a layer of a UNet computes; None for one that has no place in the picture.

    Args:
        root: The UNet.
        name: Of a layer, or of a transformer or residual block.
    """
    module = root.get_submodule(name)
    if name.endswith(tuple(_TEXTS)):
        return Place(TEXT, name.partition(".transformer_blocks.")[0])
    if ".transformer_blocks." in name:
        return Place(TOKENS, name.partition(".transformer_blocks.")[0])
    block, mark, _ = name.partition(".emb_layers.")
    if mark:
        return Place(EMBEDDING, block)
    if kind(module) == "conv" or hasattr(module, "num_groups") or hasattr(module, "in_layers"):
        return Place(GRID)
    parent = name.rpartition(".")[0]
    if parent and hasattr(root.get_submodule(parent), "transformer_blocks"):
        return Place(TOKENS, parent)
    return None


def refuse_other_than_unet(model: Any) -> None:
    """Refuse a mask for a MODEL whose parts have no known place in the picture.

    Raises:
        ValueError: It is no UNet of pictures.
    """
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    root = model.model.diffusion_model
    is_flat = not any(hasattr(module, "time_stack") for module in root.modules())
    if not isinstance(root, UNetModel) or not is_flat:
        raise ValueError(
            f"A mask needs a UNet (Stable Diffusion 1.5, 2 or XL), and {type(model.model).__name__} is none: its image "
            "and text tokens run through the same layers. Disconnect mask; the range of the sampling works."
        )


class _Forward(threading.local):
    """What is known within one forward, of which the host may have several at once on as many devices."""

    def __init__(self) -> None:
        self.sizes: dict[str, Size] = {}
        self.batch, self.parts = 1, 1
        self.texts: Texts | None = None


class Picture:
    """The mask in one forward of a UNet.

    Args:
        mask: ``[n, height, width]`` of any size.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        with torch.inference_mode(False):
            plain = mask.detach().to("cpu", torch.float32, copy=True)
        self.mask = plain.reshape(-1, 1, *plain.shape[-2:])
        self._whole: Size | None = None
        self._grids: dict[Any, torch.Tensor] = {}
        self._now = _Forward()

    @property
    def texts(self) -> Texts | None:
        """Changes of keys and values of the text; None outside of a forward."""
        return self._now.texts

    def watcher(self) -> Callable[..., Any]:
        """A wrapper of the host's: notes how large the whole picture is, as a prompt may have an area of it."""

        def watch(executor: Any, model: Any, conds: Any, x: torch.Tensor, *more: Any) -> Any:
            self._whole = (int(x.shape[-2]), int(x.shape[-1]))
            try:
                return executor(model, conds, x, *more)
            finally:
                self._whole = None

        return watch

    def install(self, root: nn.Module, places: set[Place]) -> list[Callable[[], None]]:
        """Note from here on how large the grids are that blocks get; returns what ends it."""
        handles = [
            root.get_submodule(block).register_forward_pre_hook(self._noting(block))
            for block in sorted({place.block for place in places} - {""})
        ]
        return [handle.remove for handle in handles]

    def begin(self, x: torch.Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """Begin a forward.

        Args:
            x: What the model gets, ``[B, C, height, width]``.
            options: The host's ``transformer_options``.

        Returns:
            The options to go on with.

        Raises:
            RuntimeError: The model gets a part of the picture.
        """
        size = (int(x.shape[-2]), int(x.shape[-1]))
        if self._whole not in (None, size):
            raise RuntimeError(
                f"The mask of an adapter is for the whole picture, and the model is given a part of it ({size[1]} x "
                f"{size[0]} of {self._whole[1]} x {self._whole[0]} latent pixels): an area of a prompt, or a tile. Use "
                "Conditioning (Set Mask) in the place of areas, or disconnect the mask of Load Adapter."
            )
        self._now.sizes.clear()
        self._now.batch = len(x)
        self._now.parts = max(1, len(options.get("cond_or_uncond", ())))
        texts = options.get(_SHARED) or Texts(options.get(_OVERRIDE))
        self._now.texts = texts
        return {**options, _SHARED: texts, _OVERRIDE: texts.attend}

    def end(self) -> None:
        """End a forward."""
        self._now.texts = None

    def release(self) -> None:
        """Give the device's memory back."""
        self._grids.clear()

    def masked(self, place: Place, change: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A change of a layer's output, 0 outside of the mask.

        Args:
            place: The layer's.
            change: What would be added.
            like: What it would be added to.
        """
        if place.kind == GRID:
            return change * self._grid((like.shape[-2], like.shape[-1]), like)
        if place.kind == EMBEDDING:
            return change[..., None, None] * self._grid(self._now.sizes[place.block], like)
        return change * self.tokens(place, like)

    def tokens(self, place: Place, like: torch.Tensor) -> torch.Tensor:
        """The mask for tokens of a block, ``[B, n, 1]``, or ``[1, n, 1]`` where it is the same for all.

        Args:
            place: Where.
            like: ``[B, n, channels]``.

        Raises:
            RuntimeError: The tokens are not those of the picture.
        """
        height, width = self._now.sizes[place.block]
        if like.ndim != 3 or like.shape[1] != height * width:
            raise RuntimeError(
                f"The mask of an adapter has {height} x {width} places in {place.block}, but the shape there is "
                f"{list(like.shape)}: something in this graph merges or splits tokens (ToMe, HyperTile). Take that "
                "node out, or the mask."
            )
        return self._grid((height, width), like).flatten(2).mT

    def _noting(self, block: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._now.sizes[block] = (int(args[0].shape[-2]), int(args[0].shape[-1]))

        return hook

    def _grid(self, size: Size, like: torch.Tensor) -> torch.Tensor:
        """The mask ``[B or 1, 1, height, width]``; every entry is the mean of what it covers."""
        count = 1 if len(self.mask) == 1 else self._now.batch
        key = (*size, count, self._now.parts, like.device, like.dtype)
        if key not in self._grids:
            grids = F.adaptive_avg_pool2d(self.mask, size)
            if count > 1:
                each = [i % len(grids) for i in range(count // self._now.parts)]
                grids = grids[each].repeat(self._now.parts, 1, 1, 1)
            self._grids[key] = grids.to(like.device, like.dtype)
        return self._grids[key]


class Texts:
    """Changes of keys and values of the text, which count inside of masks; one for all adapters in a forward.

    Args:
        override: The attention that the graph wants in the place of the host's, or None.
    """

    def __init__(self, override: Callable[..., torch.Tensor] | None) -> None:
        self._override = override
        self._due: dict[Picture, tuple[Place, dict[str, torch.Tensor]]] = {}

    def add(self, picture: Picture, place: Place, name: str, change: torch.Tensor) -> None:
        """Add a change of the keys or values of a layer to the next attention.

        Args:
            picture: Inside of whose mask.
            place: The layer's.
            name: The layer's.
            change: ``[B, words, channels]``.
        """
        which = next(which for end, which in _TEXTS.items() if name.endswith(end))
        changes = self._due.setdefault(picture, (place, {}))[1]
        changes[which] = changes[which] + change if which in changes else change

    def check(self, *_: Any) -> None:
        """Behind an attention: what was added has been used.

        Raises:
            RuntimeError: It was not.
        """
        if self._due:
            self._due = {}
            raise RuntimeError(
                "An adapter with a mask changes how the text is read, but something in this graph replaces the "
                "attention that reads it (an IP-Adapter, for example). Take that node out, or the mask."
            )

    def attend(
        self,
        attention: Callable[..., torch.Tensor],
        q: Any,
        k: Any,
        v: Any,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention, with what is due inside of the masks; the host's hook for other attentions."""

        def plain(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if self._override is None:
                return attention(q, k, v, *args, **kwargs)
            return self._override(attention, q, k, v, *args, **kwargs)

        due = [
            (picture, place, changes.get("k"), changes.get("v"))
            for picture, (place, changes) in self._due.items()
        ]
        if any(
            c is not None and c.shape != t.shape
            for _, _, *two in due
            for c, t in zip(two, (k, v), strict=True)
        ):
            return plain(k, v)  # of something else
        self._due = {}
        return _blended(plain, k, v, due)


def _blended(
    attend: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    k: torch.Tensor,
    v: torch.Tensor,
    due: list[tuple[Picture, Place, torch.Tensor | None, torch.Tensor | None]],
) -> torch.Tensor:
    """Attention with every change inside of its mask: exact for masks of 0 and 1, however they overlap."""
    if not due:
        return attend(k, v)
    (picture, place, more_k, more_v), *rest = due
    without = _blended(attend, k, v, rest)
    k = k if more_k is None else k + more_k
    v = v if more_v is None else v + more_v
    return torch.lerp(without, _blended(attend, k, v, rest), picture.tokens(place, without))
