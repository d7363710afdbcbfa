# SPDX-License-Identifier: Apache-2.0
"""All that one run trains, as one: layers of the model, layers of the text encoders, new words."""

import contextlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from .attach import Attached
from .base import Layer
from .dropout import Draws
from .tokens import BUNDLE, TokenVectors

MODEL, TEXT = "diffusion_model.", "text_encoders."


class Learned:
    """What the loop trains, under the names by which the optimizer tells the parts apart and files keep them.

    Args:
        model: The layers on the model.
        text: Those on the text encoders.
        tokens: Vectors of new words.
    """

    def __init__(
        self, model: Attached, text: Attached | None = None, tokens: TokenVectors | None = None
    ) -> None:
        self.model, self.text, self.tokens = model, text, tokens

    @property
    def layers(self) -> dict[str, Layer]:
        """All layers by the module's name, text encoders' with ``text_encoders.`` before it."""
        of_text = self.text.layers if self.text else {}
        return self.model.layers | {TEXT + name: layer for name, layer in of_text.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters: ``<module>.<parameter>``, ``text_encoders.<...>`` and ``embeddings.<...>``."""
        found = dict(self.model.parameters())
        if self.text is not None:
            found |= {TEXT + name: p for name, p in self.text.parameters().items()}
        return found | (self.tokens.parameters() if self.tokens else {})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU under the names that a file keeps."""
        found = self.model.tensors(MODEL)
        if self.text is not None:
            found |= self.text.tensors(TEXT)
        if self.tokens is not None:
            found |= self.tokens.tensors()
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave.

        Raises:
            ValueError: It is of layers or words that are not trained here, or lacks some, or they are misshapen.
        """
        of_text = {key: value for key, value in tensors.items() if key.startswith(TEXT)}
        words = {key: value for key, value in tensors.items() if key.startswith(BUNDLE)}
        rest = {k: v for k, v in tensors.items() if k not in of_text and k not in words}
        for what, there, part in (
            ("layers of text encoders", of_text, self.text),
            ("new words", words, self.tokens),
        ):
            if bool(there) != (part is not None):
                where = "settings do" if part is not None else "state does"
                raise ValueError(f"Only the {where} train {what}: train the same parts.")
        self.model.load(rest, MODEL)
        if self.text is not None:
            self.text.load(of_text, TEXT)
        if self.tokens is not None:
            self.tokens.load(words)

    def take_alphas(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Use the alphas that ``tensors`` gave: a run that began with a file has the file's."""
        self.model.take_alphas(tensors, MODEL)
        if self.text is not None:
            self.text.take_alphas(tensors, TEXT)

    def draw(self, draws: Draws | None) -> None:
        """Drop out by these draws of a batch from now on; by none, nothing."""
        self.model.draw(draws)
        if self.text is not None:
            self.text.draw(draws)

    def settle(self, moved: Collection[str]) -> None:
        """What has to hold after every step, for the parameters of these names that it moved."""
        if self.tokens is not None and not self.tokens.parameters().keys().isdisjoint(moved):
            self.tokens.settle()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The base model inside the block; texts are the base's where they were encoded so."""
        with self.model.off(), self.text.off() if self.text else contextlib.nullcontext():
            yield
