# SPDX-License-Identifier: Apache-2.0
"""Where a UNet looks at words: the probabilities of its cross-attention, taken while it is asked.

The host lets a layer's attention be replaced by its place. What is put there computes what was there before, and keeps
the probabilities of the words, added up over heads and layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

_PLACES = 256  # as few as there are in the paper's maps, 16 x 16
_QUARTER = 4  # of the latents' sides; coarser maps are not used

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Words:
    """Words of one conditioning.

    Attributes:
        places: Where its words are; None is everywhere but at the beginning.
        length: How many places it has.
    """

    places: tuple[int, ...] | None
    length: int


@dataclass
class _Sum:
    total: torch.Tensor
    heads: int


@dataclass
class AttentionMaps:
    """The maps of one call of a model.

    Attributes:
        words: What is looked for, by the number of the conditioning in the call.
    """

    words: Mapping[int, Words]
    _sums: dict[tuple[int, int, int], _Sum] = field(default_factory=dict)

    def patched(self, model_options: dict[str, Any], keys: list[Key]) -> dict[str, Any]:
        """Options of a call that keeps maps, beside what they are.

        Args:
            model_options: The call's.
            keys: The layers, as ``layers`` gives them.
        """
        options = model_options.get("transformer_options", {})
        replaced = options.get("patches_replace", {})
        before = replaced.get("attn2", {})
        ours = {key: self._layer(before.get(key, before.get(key[:2]))) for key in keys}
        changed = {**options, "patches_replace": {**replaced, "attn2": {**before, **ours}}}
        return {**model_options, "transformer_options": changed}

    def of(self, index: int, size: tuple[int, int]) -> torch.Tensor:
        """The map of a conditioning, the mean over the heads of all layers of one size ``[B, h, w]``.

        Args:
            index: Number of the conditioning.
            size: Height and width of the latents.

        Raises:
            ValueError: The model was not asked about it as a whole picture.
        """
        found = {key[1:]: value for key, value in self._sums.items() if key[0] == index}
        if not found:
            raise ValueError(
                "The model was not asked about the words of an edit in the whole picture, so that there is no map of "
                "its attention: set mask to difference or none, or take an edit without an area."
            )
        height, width = chosen(list(found), size)
        one = found[height, width]
        return (one.total / one.heads).view(-1, height, width)

    def _layer(self, inner: Callable[..., torch.Tensor] | None) -> Callable[..., torch.Tensor]:
        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
        ) -> torch.Tensor:
            self._keep(q, k, options)
            if inner is not None:
                return inner(q, k, v, options)
            from comfy.ldm.modules.attention import optimized_attention

            precision = options.get("attn_precision")
            return optimized_attention(q, k, v, options["n_heads"], attn_precision=precision)

        return attend

    def _keep(self, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> None:
        order, heads = options["cond_or_uncond"], options["n_heads"]
        height, width = options["activations_shape"][2:4]
        if height * width != q.shape[1]:
            return
        for index, one, other in zip(order, q.chunk(len(order)), k.chunk(len(order)), strict=True):
            if index not in self.words:
                continue
            found = _looked_at(one, other, heads, self.words[index])
            key = index, height, width
            kept = self._sums.get(key)
            if kept is None:
                self._sums[key] = _Sum(found, heads)
            else:
                kept.total, kept.heads = kept.total + found, kept.heads + heads


def layers(network: Any) -> list[Key]:
    """The cross-attention layers of a UNet on its way down and up, as the host names them; none for other models."""
    found = []
    for name in ("input", "output"):
        for number, block in enumerate(getattr(network, f"{name}_blocks", ())):
            for part in block if isinstance(block, torch.nn.Sequential) else ():
                for index, one in enumerate(getattr(part, "transformer_blocks", ())):
                    if getattr(one, "attn2", None) is not None:
                        found.append((name, number, index))
    return found


def chosen(sizes: list[tuple[int, int]], latents: tuple[int, int]) -> tuple[int, int]:
    """Which of a model's maps are taken: the coarsest that has 16 x 16 places and a quarter of the latents' sides.

    Those are LEDITS++'s, 16 x 16 for 512 x 512 pixels. Where there are none, the finest that there are.

    Args:
        sizes: Heights and widths.
        latents: Height and width of the latents.
    """
    least = max(_PLACES, latents[0] * latents[1] // _QUARTER**2)
    enough = [size for size in sizes if size[0] * size[1] >= least]
    if enough:
        return min(enough, key=lambda size: size[0] * size[1])
    return max(sizes, key=lambda size: size[0] * size[1])


def _looked_at(q: torch.Tensor, k: torch.Tensor, heads: int, words: Words) -> torch.Tensor:
    """Probabilities of the words, added up over them and the heads ``[B, places]``."""
    batch, places, width = q.shape
    one, other = (t.float().view(batch, -1, heads, width // heads).transpose(1, 2) for t in (q, k))
    chances = (one @ other.transpose(2, 3) / (width // heads) ** 0.5).softmax(dim=-1)
    # A shorter conditioning beside a longer one is repeated by the host.
    folded = chances.sum(dim=1).view(batch, places, -1, words.length).sum(dim=2)
    if words.places is None:
        return folded[:, :, 1:].sum(dim=2)
    return folded[:, :, list(words.places)].sum(dim=2)
