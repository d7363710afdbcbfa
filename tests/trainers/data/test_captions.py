# SPDX-License-Identifier: Apache-2.0
"""Captions become texts: what stays in place, what is left to chance, and how often."""

import itertools
import math
import time
from collections import Counter

import pytest
import torch

from graft.trainers.data import Captioning, Dataset, Item
from graft.trainers.data.captions import choose_wildcards

TAGS = "sks, red hat, smile, park, dog"


def texts(caption=TAGS, trigger="", **settings):
    captions = (caption,) if isinstance(caption, str) else caption
    return Captioning(**settings).texts(captions, trigger)


def test_wildcards_of_long_captions_take_no_time():
    """The longest caption that is taken, nested as deeply as is allowed, 256 times."""
    began = time.perf_counter()
    text = "{a" * 1000 + "b" * 16_000 + "}" * 1000
    (found,) = texts(text, wildcards=True, variants=256)
    assert found == "a" * 1000 + "b" * 16_000
    assert time.perf_counter() - began < 20
    for many in ("{" * 1001, "{}" * 10_000):
        with pytest.raises(ValueError, match="wildcards are in one caption, 1000"):
            choose_wildcards(many, torch.Generator())


def test_what_no_text_encoder_reads_is_refused():
    with pytest.raises(ValueError, match="prefix has 20001 characters"):
        Captioning(prefix="a" * 20_001)
    with pytest.raises(ValueError, match="caption of 20001 characters"):
        Item(("a" * 20_001,), path="x.png")
    with pytest.raises(ValueError, match=r"x\.png has 1001 captions"):
        Item(("a",) * 1001, path="x.png")
    with pytest.raises(ValueError, match="has a int as caption"):
        Item((3,), path="x.png")
    with pytest.raises(ValueError, match="10000001 pictures with their repeats"):
        Dataset(
            (Item(("a",), path="x.png", repeats=100_000),) * 100 + (Item(("a",), path="x.png"),)
        )
    with pytest.raises(ValueError, match="trigger has 1001"):
        Dataset((Item(("a",), path="x.png"),), trigger="a" * 1001)


def test_half_a_character_is_refused_where_it_comes_in():
    """JSON can hold one, and what encodes the caption or keys a draw by it cannot."""
    with pytest.raises(ValueError, match=r"x\.png has half a character in the caption 'a\\ud800'"):
        Item(("a\ud800",), path="x.png")
    with pytest.raises(ValueError, match="suffix has half a character"):
        Captioning(suffix="\udfff")
    with pytest.raises(ValueError, match="trigger has half a character"):
        Dataset((Item(("a",), path="x.png"),), trigger="\udc00")
    assert Item(("\U0001f431",), path="x.png").captions == ("\U0001f431",)


def test_a_caption_in_a_message_stays_text():
    with pytest.raises(ValueError, match=r'"\\x1b\[2J\{a"'):
        choose_wildcards("\x1b[2J{a", torch.Generator())


def test_without_options_captions_stay_as_they_are():
    odd = "  a {cat},, [trigger] "
    assert texts(odd, "sks") == (odd,)
    assert texts(("one", "two", "one")) == ("one", "two")


def test_shuffled_tags_are_a_permutation_behind_the_kept_ones():
    found = texts(shuffle=True, keep_tags=2, variants=64)
    assert all(text.startswith("sks, red hat, ") for text in found)
    # The 3! orders of the other three; 64 draws miss one of them in 5 of 100,000 cases.
    assert set(found) == {
        ", ".join(["sks", "red hat", *order])
        for order in itertools.permutations(["smile", "park", "dog"])
    }
    assert len(texts(shuffle=True, keep_tags=5, variants=64)) == 1


def test_tags_are_dropped_as_often_as_the_share_says():
    tags = [f"tag{n}" for n in range(200)]
    found = texts(", ".join(tags), tag_dropout=0.3, keep_tags=10, variants=50)
    kept = Counter(tag for text in found for tag in text.split(", "))
    assert all(kept[tag] == 50 for tag in tags[:10])
    total = sum(kept[tag] for tag in tags[10:])
    # 9500 draws of probability 0.7: four standard deviations.
    assert abs(total - 0.7 * 9500) <= 4 * math.sqrt(9500 * 0.3 * 0.7)
    # What is left keeps its order.
    assert all(
        [int(tag[3:]) for tag in text.split(", ")] == sorted(int(t[3:]) for t in text.split(", "))
        for text in found
    )


def test_all_tags_can_be_dropped_and_another_separator_is_used():
    assert texts("a | b | c", separator="|", tag_dropout=1.0, keep_tags=1) == ("a",)
    assert texts("a | b", separator="|", shuffle=True, keep_tags=2) == ("a | b",)
    assert texts("a, b", separator=", ", shuffle=True, keep_tags=2) == ("a, b",)


def test_wildcards_take_every_choice_alike_also_nested_ones():
    found = texts("a {red|{dark|light} blue} {cat|}", wildcards=True, variants=200)
    assert set(found) == {
        f"a {colour} {animal}"
        for colour in ("red", "dark blue", "light blue")
        for animal in ("cat", "")
    }
    counts = Counter(
        choose_wildcards("{a|b|{c|d}}", torch.Generator().manual_seed(n)) for n in range(1200)
    )
    for choice, share in {"a": 1 / 3, "b": 1 / 3, "c": 1 / 6, "d": 1 / 6}.items():
        assert abs(counts[choice] - 1200 * share) <= 4 * math.sqrt(1200 * share * (1 - share))


@pytest.mark.parametrize("text", ["a {red cat", "a red} cat", "{a|{b}", "}{"])
def test_a_brace_without_a_partner_is_named(text):
    with pytest.raises(ValueError, match=r"has no .* in the caption"):
        texts(text, wildcards=True)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog", "sks, a dog"),
        ("a photo of [trigger] in a park", "a photo of sks in a park"),
        ("a sks dog", "a sks dog"),
        ("a dog that asks", "sks, a dog that asks"),
        ("", "sks"),
    ],
)
def test_the_trigger_is_put_where_it_belongs(caption, expected):
    assert Captioning(add_trigger=True).texts((caption,), " sks ") == (expected,)
    assert Captioning(add_trigger=True).texts((caption,), "") == (caption,)


def test_prefix_and_suffix_stay_in_place():
    how = Captioning(prefix="photo of", suffix=", 4k", add_trigger=True, shuffle=True, keep_tags=0)
    for text in how.texts(("dog, park",), "sks"):
        assert text in ("photo of sks, dog, park, 4k", "photo of sks, park, dog, 4k")
    assert texts("a dog", prefix="photo of", suffix="outside") == ("photo of a dog outside",)


def test_every_caption_has_as_many_variants():
    found = texts(
        ("{a|b|c|d}{a|b|c|d}{a|b|c|d}", "{x|y|z|w}{x|y|z|w}{x|y|z|w}"), wildcards=True, variants=9
    )
    assert Counter(text[0] in "abcd" for text in found) == {True: 5, False: 5}


def test_a_draw_gives_dropout_its_share_exactly_and_each_text_alike():
    """On the grid (n + 1/2) / 1000 the interval [0, 1/4) has 250 draws, and three texts share 750."""
    how = Captioning(dropout=0.25)
    grid = [(n + 0.5) / 1000 for n in range(1000)]
    counts = Counter(how.choose(("a", "b", "c"), "", u) for u in grid)
    assert counts == {"": 250, "a": 250, "b": 250, "c": 250}
    assert how.all_texts(("a", "b", "c")) == ("a", "b", "c", "")
    assert how.choose(("a",), "", 0.25) == "a"
    assert how.choose(("a",), "", math.nextafter(0.25, 0)) == ""
    assert how.choose(("a", "b"), "", math.nextafter(1, 0)) == "b"
    assert {Captioning(dropout=1.0).choose(("a",), "", u) for u in grid} == {""}
    assert {Captioning().choose(("a",), "", u) for u in grid} == {"a"}


def shares(how, captions, trigger="", draws=400):
    """How often each text is drawn, on a grid of uniform draws, by hand: no generator of ours decides."""
    grid = [(n + 0.5) / draws for n in range(draws)]
    counts = Counter(how.choose(captions, trigger, u) for u in grid)
    return {text: count / draws for text, count in counts.items()}


@pytest.mark.parametrize("variants", [8, 64])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_steps_drop_a_tag_as_often_as_the_share_says(rate, variants):
    """Over 300 captions with one tag to drop: a mean of 300 x variants draws of probability `rate`."""
    how = Captioning(tag_dropout=rate, variants=variants)
    captions = [f"a cat {n}, sitting" for n in range(300)]
    dropped = sum(shares(how, (text,)).get(text.split(",")[0], 0) for text in captions) / 300
    assert abs(dropped - rate) <= 4 * math.sqrt(rate * (1 - rate) / (300 * variants))


def test_wildcards_are_drawn_as_often_as_they_are_written():
    captions = [f"{{red|red|red|blue}} {n}" for n in range(300)]
    how = Captioning(wildcards=True)
    red = sum(shares(how, (text,)).get(f"red {n}", 0) for n, text in enumerate(captions)) / 300
    assert abs(red - 0.75) <= 4 * math.sqrt(0.75 * 0.25 / (300 * 8))


def test_captions_of_one_picture_are_drawn_alike():
    drawn = shares(Captioning(shuffle=True, keep_tags=0), ("a cat", "tag1, tag2, tag3, tag4"))
    assert drawn["a cat"] == 0.5
    assert shares(Captioning(), ("a", "b", "a", "a")) == {"a": 0.75, "b": 0.25}


def test_what_is_encoded_has_every_text_once():
    for how in (Captioning(tag_dropout=0.3, variants=64), Captioning(wildcards=True)):
        encoded = how.all_texts(("a {cat|cat}, sitting", "a {cat|cat}, sitting"))
        assert len(set(encoded)) == len(encoded)
        assert set(encoded) == set(shares(how, ("a {cat|cat}, sitting",) * 2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prefix": "photo of [trigger],"}, "photo of sks, a dog"),
        ({"suffix": ", [trigger] style"}, "a dog, sks style"),
        ({"prefix": "[trigger]:", "suffix": "by [trigger]"}, "sks: a dog by sks"),
        ({"prefix": "photo of sks,"}, "photo of sks, a dog"),
        ({"suffix": "in SKS style"}, "a dog in SKS style"),
        ({"prefix": "photo of asks,"}, "photo of asks, sks, a dog"),
    ],
)
def test_prefix_and_suffix_can_have_the_trigger(settings, expected):
    assert texts("a dog", "sks", add_trigger=True, **settings) == (expected,)


def test_a_tag_with_the_trigger_is_never_dropped():
    how = {"keep_tags": 0, "tag_dropout": 1.0, "shuffle": True}
    for add_trigger in (False, True):
        assert texts("red, Sks dog, park", "sks", add_trigger=add_trigger, **how) == ("Sks dog",)
    assert texts("red, [trigger] dog, park", "sks", **how) == ("[trigger] dog",)
    assert texts("red, [trigger] dog", "sks", add_trigger=True, **how) == ("sks dog",)
    assert texts("red, asks", "sks", **how) == ("",)


@pytest.mark.parametrize("u", [-0.1, 1.0, math.nan])
def test_a_draw_outside_is_refused(u):
    with pytest.raises(ValueError, match="must be in"):
        Captioning().choose(("a",), "", u)


def test_variants_depend_on_caption_and_settings_only():
    how = {"shuffle": True, "variants": 4}
    caption = ", ".join(map(str, range(30)))
    assert texts(caption, **how) == texts(caption, **how)
    assert len(texts(caption, **how)) == 4
    assert texts(caption, **how) != texts(caption, **how, seed=1)
    assert texts(caption, **how)[:2] == texts(caption, shuffle=True, variants=2)


def test_bad_options():
    with pytest.raises(ValueError, match="separator"):
        Captioning(separator=" ")
    with pytest.raises(ValueError, match="dropout is 1.5"):
        Captioning(dropout=1.5)


def test_a_dataset_asks_its_captioning():
    item = Item(("one", "two"), pixels=torch.rand(32, 32, 3))
    dataset = Dataset((item,), "sks", captioning=Captioning(prefix="a", dropout=0.5))
    assert item.caption == "one" and dataset.texts(0) == ("a one", "a two", "")
    assert [dataset.choose_text(0, u) for u in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [
        "", "", "a one", "a one", "a two", "a two",
    ]  # fmt: skip
