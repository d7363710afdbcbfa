# SPDX-License-Identifier: Apache-2.0
"""Several prompts through the host's text encoders at once.

The host encodes one prompt a call: it lists the prompt's tokens, runs each encoder on them, and weighs and joins what
comes out. That is done for every prompt here, too, but the runs of an encoder are made as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from . import tokens as host_tokens


def encode_each(model: Any, prompts: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What ``model.encode_token_weights`` gives for each prompt, the same up to rounding.

    Args:
        model: The host's text encoders.
        prompts: What the host's tokenizer made of each.

    Returns:
        Text ``[1, T, C]``, pooled text and what else there is, for each.
    """
    if len(prompts) == 1:
        return [model.encode_token_weights(prompts[0])]
    with _gathered(model) as encoders:
        for prompt in prompts:
            model.encode_token_weights(prompt)
        for encoder in encoders:
            encoder.run()
        return [model.encode_token_weights(prompt) for prompt in prompts]


@contextmanager
def _gathered(model: nn.Module) -> Iterator[list[_Gathered]]:
    """Every encoder of ``model``, its runs noted, while the context lasts."""
    with ExitStack() as stack:
        found = []
        for module in model.modules():
            if hasattr(module, "process_tokens"):
                found.append(_Gathered(module))
                stack.callback(module.__dict__.pop, "encode")
                module.__dict__["encode"] = found[-1]
        yield found


class _Gathered:
    """In the place of an encoder's ``encode``: first notes what is to be run, then answers in the order of the notes.

    Encoders that tell more than the text and the pooled text run at once: what that is like cannot be known before.

    Args:
        encoder: The host's.
    """

    def __init__(self, encoder: Any) -> None:
        self._encode = encoder.encode
        self._table = encoder.transformer.get_input_embeddings().weight
        plain = not getattr(encoder, "return_attention_masks", False)
        self._waits = plain and host_tokens.is_clip(encoder)
        self._noted: list[Sequence[Any]] = []
        self._answers: list[tuple[Any, ...]] = []
        self._has_run = False

    def __call__(self, sections: Sequence[Any]) -> tuple[Any, ...]:
        """Run lists of tokens: text ``[n, T, C]`` and pooled text ``[n, P]``; zeros before ``run``."""
        if self._has_run:
            return self._answers.pop(0)
        if not self._waits:
            text, *others = self._encode(sections)
            self._answers.append((text, *others))
            return text.clone(), *others  # the host weighs it in place
        self._noted.append(sections)
        count, width = len(sections), self._table.shape[1]
        text = torch.zeros(count, len(sections[0]), width, device=self._table.device)
        return text, text[:, 0]

    def run(self) -> None:
        """Run all that was noted, lists of one length together."""
        self._has_run = True
        found: dict[tuple[int, int], tuple[torch.Tensor, Any]] = {}
        by_length: dict[int, list[tuple[int, int]]] = {}
        for call, sections in enumerate(self._noted):
            for index, section in enumerate(sections):
                by_length.setdefault(len(section), []).append((call, index))
        for places in by_length.values():
            text, pooled = self._encode([self._noted[call][index] for call, index in places])[:2]
            for row, place in enumerate(places):
                found[place] = (text[row], None if pooled is None else pooled[row])
        for call, sections in enumerate(self._noted):
            texts, pools = zip(*(found[call, i] for i in range(len(sections))), strict=True)
            self._answers.append(
                (torch.stack(texts), None if pools[0] is None else torch.stack(pools))
            )
