# SPDX-License-Identifier: Apache-2.0
"""New words of files for a CLIP: which of its encoders their vectors are for, and whether it knows the word already."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...loaders.embedding_file import UNSAID, Words, bundled
from ...plain import plain
from . import tokens

_WORD = re.compile(r"[\w<>-]*[^\W\d][\w<>-]*")
_NOT_IN_A_WORD = re.compile(r"[^\w<>-]+")


def called(found: Words, name: str, word: str) -> Words:
    """A file's words by the names that prompts have them by.

    Args:
        found: By the file's own names, ``UNSAID`` for none.
        name: For the one without a name: the file's, say.
        word: What to call them instead, with commas where they are several; empty for nothing.

    Returns:
        The same vectors.

    Raises:
        ValueError: There are more or fewer names than words, or one cannot be a word.
    """
    own = [_NOT_IN_A_WORD.sub("_", key or name) for key in found]
    names = [part.strip() for part in word.split(",")] if word.strip() else own
    if len(names) != len(own):
        raise ValueError(
            f"word gives {len(names)} names ({plain(word, 80)}), and there are {len(own)} new words: {', '.join(own)}. "
            "Give each one, with commas between them, or leave word empty."
        )
    for one in names:
        if not _WORD.fullmatch(one) or one.lower() == "embedding":
            raise ValueError(
                f"'{plain(one, 80)}' cannot be a word: use letters, digits, _, - and <> with a letter among them, "
                "no blanks; TOK for example."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"word gives the same name twice: {plain(word, 80)}.")
    return dict(zip(names, found.values(), strict=True))


def add(clip: Any, words: Words) -> tuple[Any, str]:
    """A CLIP that knows words, besides those that it knows; the given one does not change.

    Args:
        clip: The host's CLIP.
        words: ``[n, width]`` by word and encoder, ``UNSAID`` where the width has to tell the encoder.

    Returns:
        The CLIP, and what of the words it took: ``TOK (2 vectors in clip_g and clip_l)``.

    Raises:
        ValueError: A word fits none of its encoders, or the CLIP knows the word already by other vectors.
    """
    widths, known = _widths(clip), tokens.words(clip)
    bound, said = dict[str, Mapping[str, torch.Tensor]](), []
    for word, by_encoder in words.items():
        fitting = _fitting(word, by_encoder, widths)
        before = known.get(word, {})
        for key, vectors in fitting.items():
            if key in before and not torch.equal(before[key].cpu().float(), vectors.float()):
                raise ValueError(
                    f"The CLIP knows a word {word} already, by other vectors: two files are called by the same word. "
                    "Load one of them with Load Pivotal, and give it another name in word."
                )
        bound[word] = {**before, **fitting}
        said.append(_said(word, fitting, sorted(set(widths) - set(bound[word]))))
    return tokens.bind(clip, bound), ", ".join(said)


def with_words(clip: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The CLIP with the new words that an adapter bundles, in the place of what it knew by their names.

    Args:
        clip: The host's CLIP; it is not changed.
        tensors: Of the adapter, by key.

    Returns:
        A CLIP of its own; the same where there are no words.

    Raises:
        ValueError: A word fits none of its encoders.
    """
    found = bundled(tensors)
    widths = _widths(clip)
    fitting = {word: _fitting(word, vectors, widths) for word, vectors in found.items()}
    return tokens.bind(clip, fitting) if found else clip


def _widths(clip: Any) -> dict[str, int]:
    return {key: int(encoder.table.shape[1]) for key, encoder in tokens.encoders(clip).items()}


def _fitting(
    word: str, by_encoder: Mapping[str, torch.Tensor], widths: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """The vectors that the CLIP has an encoder for, by encoder."""
    found = {}
    for key, vectors in by_encoder.items():
        width = int(vectors.shape[1])
        homes = [key] if key != UNSAID else [home for home in widths if widths[home] == width]
        if homes and widths.get(homes[0]) == width:
            found[homes[0]] = vectors
    if not found:
        came = _listed({key or "an encoder": v.shape[1] for key, v in by_encoder.items()})
        raise ValueError(
            f"The new word {word} is for {came}, and the CLIP has {_listed(widths)}: it was made for another kind of "
            "model."
        )
    return found


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{key} ({width} wide)" for key, width in sorted(widths.items())) or "none"


def _said(word: str, fitting: Mapping[str, torch.Tensor], without: Sequence[str]) -> str:
    count = max(len(vectors) for vectors in fitting.values())
    text = f"{word} ({count} vector{'s' if count > 1 else ''} in {' and '.join(sorted(fitting))}"
    if without:
        text += f"; {' and '.join(without)} leave{'s' if len(without) == 1 else ''} it out"
    return f"{text})"
