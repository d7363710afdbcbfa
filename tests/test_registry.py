# SPDX-License-Identifier: Apache-2.0
"""The registry: what it refuses, and its option strings."""

from dataclasses import dataclass

import pytest

from graft.registry import Registry, check_limits, option


@dataclass(frozen=True)
class Part:
    gamma: float = option(5.0, "A number.", min=0.0, max=10.0)
    count: int = option(1, "A count.", min=1)
    flag: bool = option(False, "A switch.")
    mode: str = option("a", "A choice.", choices=("a", "b"))

    def __post_init__(self):
        check_limits(self)


@pytest.fixture
def family():
    registry = Registry("part")
    registry.register("one-part")(Part)
    return registry


def test_options_are_parsed_by_the_type_of_the_default(family):
    part = family.parse("one-part", "gamma=2.5, count = 3\nflag=yes", mode="b", unknown_widget=1)
    assert part == Part(gamma=2.5, count=3, flag=True, mode="b")
    assert family.parse("one-part") == Part()


def test_a_quoted_value_may_have_commas():
    registry = Registry("part")

    @registry.register("one")
    @dataclass(frozen=True)
    class One:
        text: str = option("", "A text.")
        size: int = option(1, "A size.")

    assert registry.parse("one", 'text="a=1, b=2", size=3') == One("a=1, b=2", 3)
    assert registry.parse("one", "size=3, text=a=1; b") == One("a=1; b", 3)
    with pytest.raises(ValueError, match="quote is left open"):
        registry.parse("one", 'text="a=1, size=3')


@pytest.mark.parametrize(
    "options,message",
    [
        ("gama=1", "Did you mean gamma"),
        ("gamma", "name=value"),
        ("count=x", "not a valid int"),
        ("flag=perhaps", "not a valid bool"),
        ("gamma=11", "between 0.0 and 10.0"),
        ("count=0", "at least 1"),
        ("mode=c", "Unknown mode 'c'"),
        ("gamma=nan", "gamma"),
    ],
)
def test_bad_options_say_what_is_allowed(family, options, message):
    with pytest.raises(ValueError, match=message):
        family.parse("one-part", options)


def test_unknown_names_list_the_near_ones(family):
    with pytest.raises(ValueError, match="Did you mean one-part"):
        family.get("one-prat")


def test_registration_refuses_what_would_hurt_later(family):
    with pytest.raises(ValueError, match="twice"):
        family.register("one-part")(Part)
    with pytest.raises(ValueError, match="lower-case"):
        family.register("One_Part")(Part)
    with pytest.raises(TypeError, match="frozen"):
        family.register("thawed")(dataclass(type("Thawed", (), {})))

    @dataclass(frozen=True)
    class Bare:
        x: int = 1

    with pytest.raises(TypeError, match="tooltip"):
        family.register("bare")(Bare)


def test_a_text_sets_only_what_a_text_can_say():
    registry = Registry("part")

    @registry.register("one")
    @dataclass(frozen=True)
    class One:
        names: tuple = option((), "Names.")
        size: int = option(1, "A size.")

    assert registry.parse("one", "size=3", names=("a",)) == One(("a",), 3)
    with pytest.raises(ValueError, match="Unknown option of one 'names'"):
        registry.parse("one", "names=a")
