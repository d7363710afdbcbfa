# SPDX-License-Identifier: Apache-2.0
"""The two text encoders in training: ComfyUI's SDXL tokenizer and text model, with compact token tables.

Only rows of words that the grammar uses are trained. Every other row is a seeded random sign times the deviation of
the trained rows, so that unknown words stay distinct, in scale, and pack well.
"""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F

from ...host.model.mini import clip_options
from . import captions

WIDTH = 64
LAYERS = 3
VOCABULARY = 49408
START, END = 49406, 49407
LENGTH = 77


def out_of_place_forward(
    self: nn.Module, x: torch.Tensor, mask=None, optimized_attention=None
) -> torch.Tensor:
    """`CLIPLayer.forward` without in-place additions, which break backward."""
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))


class WordTokens:
    """ComfyUI's own tokenizer, remembered word by word; pads as each of the two encoders does."""

    def __init__(self) -> None:
        from comfy.sdxl_clip import SDXLTokenizer

        self.tokenizer = SDXLTokenizer()
        self.known: dict[str, list[int]] = {}
        self.used = sorted(
            {token for word in captions.all_words() for token in self.word(word)} | {0, START, END}
        )
        self.unused = sorted(set(range(VOCABULARY - 2)) - set(self.used))

    def word(self, word: str) -> list[int]:
        """Token ids of one word without start and end."""
        if word not in self.known:
            row = [int(token) for token, _ in self.tokenizer.tokenize_with_weights(word)["l"][0]]
            self.known[word] = row[1 : row.index(END)]
        return self.known[word]

    def rows(self, text: str, chooser: random.Random) -> tuple[list[int], list[int]]:
        """Token rows of both encoders.

        Args:
            text: A caption; `captions.UNKNOWN` in it becomes a random unused token.
            chooser: Source of that token.

        Returns:
            77 ids for CLIP-L (padded with the end token) and 77 for CLIP-G (padded with 0).
        """
        tokens = [START]
        for word in text.split():
            if word.startswith(captions.UNKNOWN):
                tokens.append(chooser.choice(self.unused))
                word = word.removeprefix(captions.UNKNOWN)
            tokens += self.word(word) if word else []
        tokens = tokens[: LENGTH - 1] + [END]
        rest = LENGTH - len(tokens)
        return tokens + [END] * rest, tokens + [0] * rest


class TokenTable(nn.Module):
    """A token table of which only the used rows are parameters."""

    def __init__(self, used: list[int], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(len(used), WIDTH, generator=generator) * 0.1)
        signs = torch.randint(2, (VOCABULARY, WIDTH), generator=generator, dtype=torch.int8) * 2 - 1
        self.register_buffer("signs", signs, persistent=False)
        place = torch.full((VOCABULARY,), -1)
        place[used] = torch.arange(len(used))
        self.register_buffer("place", place, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed token ids ``[B, 77]`` as ``[B, 77, 64]``."""
        place = self.place[tokens]
        trained = F.embedding(place.clamp(min=0), self.weight)
        unknown = self.signs[tokens] * self.weight.detach().std()
        return torch.where(place[..., None] >= 0, trained, unknown)

    @torch.no_grad()
    def whole(self, trained: torch.Tensor) -> torch.Tensor:
        """The full table ``[49408, 64]`` for an export, given the trained rows."""
        table = self.signs * trained.std()
        table[self.place >= 0] = trained[self.place[self.place >= 0]]
        return table


class TextEncoders(nn.Module):
    """Both miniature encoders of ComfyUI, fed with embeddings from compact tables."""

    def __init__(self, tokens: WordTokens, device: torch.device, seed: int = 0) -> None:
        super().__init__()
        from comfy.sdxl_clip import SDXLClipModel

        self.tokens = tokens
        self.clip = SDXLClipModel(device="cpu", dtype=torch.float32, model_options=clip_options())
        initialise(self.clip)
        self.table_l = TokenTable(tokens.used, seed + 101)
        self.table_g = TokenTable(tokens.used, seed + 202)
        for name in ("clip_l", "clip_g"):
            model = getattr(self.clip, name).transformer.text_model
            model.embeddings.token_embedding = nn.Identity()
            for layer in model.encoder.layers:
                layer.forward = out_of_place_forward.__get__(layer)
        self.requires_grad_(True)
        self.to(device)

    def forward(
        self, rows_l: torch.Tensor, rows_g: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode token rows ``[B, 77]`` to the context ``[B, 77, 128]`` and the pooled output ``[B, 64]``."""
        ends = ((rows_l == END).int().argmax(-1) + 1).tolist()
        both = []
        for clip, table, rows in (
            (self.clip.clip_l, self.table_l, rows_l),
            (self.clip.clip_g, self.table_g, rows_g),
        ):
            both.append(
                clip.transformer(
                    None,
                    None,
                    embeds=table(rows),
                    num_tokens=ends,
                    intermediate_output=LAYERS - 2,
                    final_layer_norm_intermediate=False,
                    dtype=torch.float32,
                )
            )
        return torch.cat([both[0][1], both[1][1]], dim=-1), both[1][2]


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Initialise what ComfyUI builds without values."""
    for module in model.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
