# SPDX-License-Identifier: Apache-2.0
"""How captions become the texts that are trained on.

Everything random is drawn beforehand, into a few variants of each caption, so that each is encoded
once and a step only chooses among encodings: live variety at the price of a cache. The options are
those of sd-scripts (`shuffle_caption`, `keep_tokens`, `caption_dropout_rate`, ...); prefix, suffix
and trigger stay in their place when tags are shuffled.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

from ...plain import has_halves, plain
from ...registry import check_limits, option
from ..random import generator
from .caption_files import MAX_CAPTION
from .triggers import PLACEHOLDER, trigger_pattern

MAX_WILDCARDS = 1000
_BRACES = re.compile(r"([{|}])")
_PAUSES = (",", ".", ";", ":", "!", "?")


@dataclass(frozen=True)
class Captioning:
    """How the captions of a dataset are trained with; without options, as they are.

    Raises:
        ValueError: A field is outside its limits, or the separator is empty.
    """

    prefix: str = option("", "Put before every caption.")
    suffix: str = option("", "Put after every caption.")
    add_trigger: bool = option(
        False,
        "Put the dataset's trigger in place of [trigger], also in prefix and suffix, or before the caption where the "
        "text has neither.",
    )
    shuffle: bool = option(
        False, "Shuffle the tags of a caption, so that their order is not learned."
    )
    keep_tags: int = option(
        1,
        "Tags at the beginning that keep their place and are never dropped. A tag with the trigger never is, either.",
        min=0,
        max=1000,
    )
    tag_dropout: float = option(
        0.0, "Share of the tags that is left out, each by chance.", min=0.0, max=1.0
    )
    dropout: float = option(
        0.0,
        "Share of the steps that train a picture with the empty text, for classifier-free guidance.",
        min=0.0,
        max=1.0,
    )
    wildcards: bool = option(
        False,
        "Take one of the choices in braces by chance, which bars set apart; they may be nested.",
    )
    variants: int = option(
        8,
        "Texts of each picture that are drawn from, where something is left to chance. Each is encoded once, before "
        "training.",
        min=1,
        max=256,
    )
    separator: str = option(",", "What stands between tags.")
    seed: int = option(0, "Seed of the variants.", min=0, max=2**64 - 1)
    weighted: bool = option(
        False,
        "Take brackets in captions for prompt weights, (red:1.3), as ComfyUI does in prompts. Off: they are brackets, "
        "as in the tag saber (fate).",
    )

    def __post_init__(self) -> None:
        check_limits(self)
        for name in ("prefix", "suffix", "separator"):
            if has_halves(getattr(self, name)):
                raise ValueError(f"{name} has half a character: write it anew")
            if len(getattr(self, name)) > MAX_CAPTION:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} characters; {MAX_CAPTION} are possible"
                )
        if not self.separator.strip():
            raise ValueError(
                "the separator of tags is empty: give what stands between them, a comma as a rule"
            )

    @property
    def is_random(self) -> bool:
        """Whether a caption can become different texts."""
        return self.shuffle or self.tag_dropout > 0 or self.wildcards

    def texts(self, captions: tuple[str, ...], trigger: str = "") -> tuple[str, ...]:
        """All the different texts that captions become, the empty one of the dropout apart.

        They depend on the caption only, so that pictures with one caption share their encodings.

        Args:
            captions: The captions of one picture.
            trigger: The word that the concept is called by.

        Returns:
            One or more texts, in a fixed order.

        Raises:
            ValueError: Braces of a wildcard do not match.
        """
        return tuple(dict.fromkeys(_variants(self, captions, trigger.strip())))

    def all_texts(self, captions: tuple[str, ...], trigger: str = "") -> tuple[str, ...]:
        """The texts and, where there is caption dropout, the empty one; for what encodes them."""
        texts = self.texts(captions, trigger)
        return tuple(dict.fromkeys([*texts, ""])) if self.dropout > 0 else texts

    def choose(self, captions: tuple[str, ...], trigger: str, u: float) -> str:
        """The text for a uniform draw: empty below ``dropout``, above it each variant alike.

        Each caption has as many variants as another, together at least ``variants``. Equal ones count as often as
        they were drawn, so that a tag is left out as often as ``tag_dropout`` says.

        Args:
            captions: The captions of one picture.
            trigger: The word that the concept is called by.
            u: In [0, 1).

        Returns:
            One of ``all_texts``.

        Raises:
            ValueError: ``u`` is outside, or braces of a wildcard do not match.
        """
        if not 0 <= u < 1:
            raise ValueError(f"a uniform draw is {u}; it must be in [0, 1)")
        if u < self.dropout:
            return ""
        texts = _variants(self, captions, trigger.strip())
        place = int((u - self.dropout) / (1 - self.dropout) * len(texts))
        return texts[min(place, len(texts) - 1)]  # the division may round up to 1


@lru_cache(maxsize=4096)
def _variants(how: Captioning, captions: tuple[str, ...], trigger: str) -> tuple[str, ...]:
    """What a step draws among, equal texts each time they came up."""
    each = -(-how.variants // len(captions)) if how.is_random else 1
    places = ((number, caption) for number in range(each) for caption in captions)
    return tuple(_variant(how, caption, trigger, number) for number, caption in places)


def _variant(how: Captioning, caption: str, trigger: str, number: int) -> str:
    parts = [how.prefix, caption, how.suffix]
    if how.is_random:
        draws = generator(how.seed, f"caption {caption}", number)
        if how.wildcards:
            parts = [choose_wildcards(part, draws) for part in parts]
        if how.shuffle or how.tag_dropout > 0:
            parts[1] = _shuffled(how, parts[1], trigger, draws)
    if how.add_trigger and trigger:
        parts = _with_trigger(parts, trigger)
    prefix, body, suffix = parts
    return _joined(_joined(prefix.strip(), body), suffix.strip())


def _with_trigger(parts: list[str], trigger: str) -> list[str]:
    """Prefix, caption and suffix with the trigger once, or wherever the placeholder is."""
    if any(PLACEHOLDER in part for part in parts):
        return [part.replace(PLACEHOLDER, trigger) for part in parts]
    if any(map(trigger_pattern([trigger]).search, parts)):
        return parts
    prefix, body, suffix = parts
    return [prefix, f"{trigger}, {body}" if body else trigger, suffix]


def _joined(first: str, second: str) -> str:
    if not first or not second:
        return first or second
    return first + second if second.startswith(_PAUSES) else f"{first} {second}"


def _shuffled(how: Captioning, text: str, trigger: str, draws: torch.Generator) -> str:
    """Shuffle and drop the tags behind the kept ones; a tag with the trigger stays."""
    separator = how.separator.strip()
    tags = [tag.strip() for tag in text.split(separator)]
    tags = [tag for tag in tags if tag]
    kept, rest = tags[: how.keep_tags], tags[how.keep_tags :]
    if how.shuffle:
        rest = [rest[i] for i in torch.randperm(len(rest), generator=draws).tolist()]
    if how.tag_dropout > 0:
        stays = torch.rand(len(rest), generator=draws, dtype=torch.float64) >= how.tag_dropout
        is_named = trigger_pattern([trigger, PLACEHOLDER]).search
        rest = [
            tag for tag, stay in zip(rest, stays.tolist(), strict=True) if stay or is_named(tag)
        ]
    glue = f"{separator} " if separator in _PAUSES else f" {separator} "
    return glue.join(kept + rest)


def choose_wildcards(text: str, draws: torch.Generator) -> str:
    """Replace each ``{a|b|c}`` by one of its choices, the inner ones first.

    Args:
        text: May hold wildcards, also nested ones.
        draws: Chooses; one draw a wildcard, in the order of their closing braces.

    Returns:
        The text without wildcards.

    Raises:
        ValueError: A brace has no partner, or there are more wildcards than anyone writes.
    """
    if text.count("{") > MAX_WILDCARDS:
        raise ValueError(
            f"{text.count('{')} wildcards are in one caption, {MAX_WILDCARDS} are possible: shorten it"
        )
    levels: list[list[list[str]]] = [[[]]]  # of braces, of the choices in them, of their pieces
    for piece in _BRACES.split(text):
        if piece == "{":
            levels.append([[]])
        elif piece == "}" and len(levels) > 1:
            choices = levels.pop()
            place = int(torch.randint(len(choices), (), generator=draws))
            levels[-1][-1] += choices[place]
        elif piece == "|" and len(levels) > 1:
            levels[-1].append([])
        elif piece == "}":
            raise ValueError(_unmatched("}", "{", text))
        elif piece:
            levels[-1][-1].append(piece)
    if len(levels) > 1:
        raise ValueError(_unmatched("{", "}", text))
    return "".join(levels[0][0])


def _unmatched(brace: str, partner: str, text: str) -> str:
    return (
        f"a '{brace}' has no '{partner}' in the caption \"{plain(text, 80)}\": a wildcard reads "
        "{red|green|blue}; repair it, or switch wildcards off"
    )
