# SPDX-License-Identifier: Apache-2.0
"""Where a text calls the concept by its trigger: the one place that decides it."""

import re
from collections.abc import Iterable
from functools import lru_cache

PLACEHOLDER = "[trigger]"

# Letters, digits and accents of scripts that put spaces between words and write both cases: Latin, Greek, Cyrillic.
# Next to a letter of another script, Chinese say, a trigger is a word of its own.
_LETTER = "[0-9A-Z_a-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u052f\u1e00-\u1fff]"


def trigger_pattern(triggers: Iterable[str]) -> re.Pattern[str]:
    """Finds triggers as whole words, whatever their case, as text encoders do not tell cases apart.

    Args:
        triggers: One or several words each; empty ones are passed over.

    Returns:
        A pattern to search texts with; one that finds nothing, where there is no trigger.
    """
    return _pattern(tuple(triggers))


@lru_cache(maxsize=256)
def _pattern(triggers: tuple[str, ...]) -> re.Pattern[str]:
    given = [words for trigger in triggers if (words := trigger.split())]
    # The longest first: of "zork" and "zork dog" a text with both words has the second.
    given.sort(key=lambda words: -len(" ".join(words)))
    return re.compile("|".join(map(_one, given)) if given else r"(?!)", re.IGNORECASE)


def _one(words: list[str]) -> str:
    before = f"(?<!{_LETTER})" if re.match(_LETTER, words[0][0]) else ""
    after = f"(?!{_LETTER})" if re.match(_LETTER, words[-1][-1]) else ""
    return before + r"\s+".join(map(re.escape, words)) + after
