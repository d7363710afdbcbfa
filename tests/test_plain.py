# SPDX-License-Identifier: Apache-2.0
"""Text of others stays text: one line, no colors, no turned directions."""

import pytest

from graft.plain import is_plain, plain, plain_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),  # the same in one character
        ("a\u2028b\u2029c\x85d\x0be", r"a\u2028b\u2029c\x85d\x0be"),
        ("cat\u202egnp.exe", r"cat\u202egnp.exe"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_more_than_text_is_written_out(text, shown):
    assert plain(text) == shown and not is_plain(text)
    assert len(plain(text).splitlines()) == 1
    plain(text).encode("utf-8")


@pytest.mark.parametrize(
    "text", ["", "10_sks dog", "caf\u00e9 \u732b \U0001f431", "a\\nb", "\u0915\u094d\u200d\u0937"]
)
def test_text_stays_as_it_is(text):
    assert plain(text) == text and is_plain(text)


def test_long_text_is_cut():
    assert plain("a" * 50, 10) == "aaaaaaa..." and plain("a" * 10, 10) == "a" * 10


def test_lines_behind_the_first_are_indented():
    assert plain_lines("one\n[ERROR] two\r\nthree\rfour") == (
        "one\n    [ERROR] two\n    three\\rfour"
    )
    assert plain_lines("one\n\n  two") == "one\n\n  two"


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(0.0312, "3.1 %"), (1.52, "152 %"), (0.999, "100 %"), (1e-6, "0.0001 %"), (0.0, "0 %")],
)
def test_percent_has_two_digits(ratio, said):
    from graft.plain import percent

    assert percent(ratio) == said


def test_some_names_are_told_and_the_rest_counted():
    from graft.plain import some

    assert some([], 2) == "" and some(["a"], 2) == "a" and some(iter("ab"), 2) == "a, b"
    assert some(["a\n", "b", "c", "d"], 2) == "a\\n, b and 2 more"
