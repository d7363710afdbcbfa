# SPDX-License-Identifier: Apache-2.0
"""Texts, encoded: each once, kept by the CLIP and the text, and read back where it is used."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ...trainers.data import Dataset
from ...trainers.data.cache import Cache, key_of
from ...trainers.data.tensor_files import Entry
from ..runs import identity
from .conditioning import Encoded, encode_text, literal

_VERSION = "graft text 1"
_PLAIN = (bool, int, float, str, type(None))
_EMBEDDING = "embedding:"  # such a text depends on a file that is not in the key


def prompts(dataset: Dataset, index: int) -> tuple[str, ...]:
    """All that a step may encode for a picture: the dataset's texts as prompts.

    Args:
        dataset: The pictures.
        index: Number of the picture.

    Returns:
        One or more different prompts; brackets are weights only where the captioning says so.

    Raises:
        ValueError: A wildcard cannot be read.
    """
    texts = dataset.texts(index)
    return texts if _is_weighted(dataset, index) else tuple(dict.fromkeys(map(literal, texts)))


def choose_prompt(dataset: Dataset, index: int, u: float) -> str:
    """The one of `prompts` for a uniform draw in [0, 1)."""
    text = dataset.choose_text(index, u)
    return text if _is_weighted(dataset, index) else literal(text)


def _is_weighted(dataset: Dataset, index: int) -> bool:
    return dataset.part(index)[0].captioning.weighted


class EncodedTexts(Mapping[str, Encoded]):
    """The encodings of the texts that were prepared.

    Args:
        clip: The CLIP on the wire.
        cache: Where the encodings are kept.

    Attributes:
        encoded: How many texts were encoded, and not found in the cache.
        guard: Entered around an encoding in mid run, where a file of the cache was lost.
    """

    def __init__(self, clip: Any, cache: Cache) -> None:
        self.encoded = 0
        self.guard: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self._clip, self._cache = clip, cache
        self._base = key_of(_VERSION, identity.clip_digest(clip))
        self._keys: dict[str, str] = {}
        self._held: dict[str, Encoded] = {}

    def prepare(self, texts: Iterable[str], stage: Callable[[int], Callable[[], None]]) -> None:
        """Look every text up, and encode those that are not there.

        Args:
            texts: In any number and with repetitions.
            stage: Told how many are to be encoded; what it returns is called before each, and may raise.

        Raises:
            ValueError: The CLIP is scheduled by hooks.
        """
        wanted = sorted(set(texts) - self._keys.keys())
        self._keys |= {text: key_of(self._base, text) for text in wanted}
        missing = [text for text in wanted if not self._is_known(text)]
        if missing:
            begin = stage(len(missing))
            for text in missing:
                begin()
                self._encode(text)
        self.encoded += len(missing)

    def __getitem__(self, text: str) -> Encoded:
        """The encoding of a text; made again where the cache has lost it."""
        if text in self._held:
            return self._held[text]
        entry = self._cache.get(self._keys[text])
        if entry is None:
            with self.guard():
                return self._encode(text)
        return _encoded(entry)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the texts."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._keys)

    def _is_known(self, text: str) -> bool:
        facts = None if _EMBEDDING in text else self._cache.facts(self._keys[text])
        if facts is None:
            return False
        if "plain" in facts and len(facts["shapes"].get("text", ())) == 3:
            return True
        self._cache.spoil(self._keys[text], f"{self._keys[text]} is no encoded text")
        return False

    def _encode(self, text: str) -> Encoded:
        encoded = encode_text(self._clip, text)
        entry = None if _EMBEDDING in text else _entry(encoded)
        if entry is None:
            self._held[text] = encoded
        else:
            self._cache.put(self._keys[text], entry)
        return encoded


def _entry(encoded: Encoded) -> Entry | None:
    """What a file can hold of an encoding; None where it holds more than tensors and plain values."""
    tensors, plain = {"text": encoded.text}, {}
    for name, value in encoded.extras.items():
        if isinstance(value, torch.Tensor):
            tensors[f"extra.{name}"] = value
        elif isinstance(value, _PLAIN):
            plain[name] = value
        else:
            return None
    return Entry(tensors, {"plain": plain, "order": list(encoded.extras)})


def _encoded(entry: Entry) -> Encoded:
    plain = entry.facts["plain"]
    extras = {
        name: plain[name] if name in plain else entry.tensors[f"extra.{name}"]
        for name in entry.facts["order"]
    }
    return Encoded(entry.tensors["text"], extras)
