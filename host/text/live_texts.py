# SPDX-License-Identifier: Apache-2.0
"""Texts that change while they are trained: encoded anew in every step, with gradients to the new words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...adapters import Network
from ...adapters.attach import Attached
from ...adapters.tokens import Tokens, TokenVectors
from ..model import layer_weights
from ..model.trainee import Trainee
from . import tokens as host_tokens
from .conditioning import Conditioner, Encoded
from .text_trainee import TextTrainee, text_trainee


class LiveTexts:
    """Encodes what changes while it is trained.

    Args:
        trained: The text encoders.
        network: Layers that are trained on them.
        vectors: New words as they are now.
    """

    def __init__(
        self, trained: TextTrainee, network: Attached | None, vectors: TokenVectors | None
    ) -> None:
        self._trained, self.network, self.vectors = trained, network, vectors

    def is_live(self, text: str) -> bool:
        """Whether the text names a new word, or all texts change."""
        named = self.vectors is not None and self.vectors.tokens.found(text)
        return self.network is not None or bool(named)

    def encode(self, texts: Sequence[str]) -> dict[str, Encoded]:
        """Encode prompts as encoders and words are now, with gradients to them where gradients are on."""
        return self._trained.encode(texts, self.vectors.vectors if self.vectors else {})

    def reload(self) -> None:
        """Load the encoders again, after something else may have evicted them."""
        self._trained.reload()


@contextmanager
def live_texts(
    clip: Any, network: Network | None, tokens: Tokens | None, seed: int, trained: Trainee
) -> Iterator[LiveTexts | None]:
    """What is trained of a CLIP while the context lasts.

    Args:
        clip: The CLIP on the wire.
        network: What is attached to its encoders; None where they stay as they are.
        tokens: Concepts that become new words; None where there are none.
        seed: Of the run.
        trained: The MODEL's trainee, which stays loaded beside the encoders.

    Yields:
        Its texts; None where nothing of it is trained.

    Raises:
        ValueError: Nothing of the encoders can be trained so.
    """
    if network is None and tokens is None:
        yield None
        return
    vectors = None
    if tokens is not None:
        tables = host_tokens.tables(clip, tokens)
        vectors = TokenVectors(tokens, tables, seed, trained.device)
    with text_trainee(clip, (trained.patcher,)) as texts:
        attached = None
        if network is not None:
            attached = Attached(texts.model, network, seed, texts.device, layer_weights.fetch)
        made = LiveTexts(texts, attached, vectors)
        try:
            if attached is not None:
                attached.leave(
                    _unread(attached, made, Conditioner(trained.patcher, trained.device))
                )
            yield made
        finally:
            if attached is not None:
                attached.remove()


def _unread(attached: Attached, live: LiveTexts, conditioner: Conditioner) -> list[str]:
    """Layers that the model does not see the effect of: those after the layer that texts are taken from, say."""
    item = conditioner.per_item(live.encode(["a"])["a"], width=512, height=512)
    seen = [c.cond.float().sum() for c in item.conds.values() if _has_history(c.cond)]
    parameters = attached.parameters()
    gradients = torch.autograd.grad(sum(seen), list(parameters.values()), allow_unused=True)
    reached = [n for n, g in zip(parameters, gradients, strict=True) if g is not None]
    return [name for name in attached.layers if not any(n.startswith(f"{name}.") for n in reached)]


def _has_history(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
