# SPDX-License-Identifier: Apache-2.0
"""Text of others in a line of ours: file names, captions and metadata cannot end the line or color it.

What would is written as Python writes it in a string: control characters (also those that begin a terminal's escape
sequence), ends of lines, marks that turn the direction of writing, invisible characters, and halves of characters.
"""

import html
import re
from collections.abc import Iterable

_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def is_plain(text: str) -> bool:
    """Whether ``plain`` leaves a text as it is."""
    return _HARMFUL.search(text) is None


def has_halves(text: str) -> bool:
    """Whether a text has halves of characters (surrogates), which neither UTF-8 nor a tokenizer takes."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def plain(text: object, most: int = 0) -> str:
    """A text in one line, with nothing in it that a terminal or a reader of the log takes for more than text.

    Args:
        text: Of anyone.
        most: Characters beyond which it is cut; 0 cuts nothing.

    Returns:
        The text; ``\\n``, ``\\x1b`` or ``\\u202e`` in place of such a character.
    """
    whole = str(text)
    if most and len(whole) > most:
        whole = f"{whole[: most - 3]}..."
    return _HARMFUL.sub(_escaped, whole)


def some(names: Iterable[str], most: int = 4) -> str:
    """The first of several names as plain text, and how many more there are: ``a, b and 3 more``."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(plain(name, 200) for name in listed[:most]) + more


def percent(ratio: float) -> str:
    """A ratio in percent with two digits, and no power of ten where there are more: 3.1 %, 150 %."""
    share = 100 * ratio
    return f"{share:.0f} %" if abs(share) >= 99.5 else f"{share:.2g} %"


def plain_lines(text: str) -> str:
    """A text of several lines, of which only the first can be taken for one of the log's own.

    Args:
        text: Of any number of lines.

    Returns:
        The text as ``plain`` has it, line by line, with all lines behind the first indented.
    """
    first, *others = (plain(line) for line in text.replace("\r\n", "\n").split("\n"))
    return "\n".join(
        [first, *(line if line[:1] in ("", " ") else f"    {line}" for line in others)]
    )


def markup(text: str) -> str:
    """A text for a place that takes HTML, as the text in a node is to some of the host's frontends.

    Args:
        text: Of any number of lines.

    Returns:
        The text with nothing in it that is a tag, an entity or ``[[label|address]]``, which they make a link of.
    """
    return html.escape(text).replace("[[", "[&#91;")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
