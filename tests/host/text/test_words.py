# SPDX-License-Identifier: Apache-2.0
"""New words of files for a CLIP: encoders by name and by width, names, clashes."""

import pytest
import torch

from tests.host.text.test_tokens import encoded, vectors

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def clip(comfy):
    from tests.host import tiny

    return tiny.clip("sdxl")


@pytest.fixture(scope="module")
def sd15(comfy):
    from tests.host import tiny

    return tiny.clip("sd15")


def test_an_encoder_that_is_not_said_goes_by_the_width(clip):
    """CLIP L of the tiny SDXL is 32 wide, CLIP G 64: the same as if the file said it."""
    from graft.host.text import words

    said = vectors(clip_g=64)
    bound, told = words.add(clip, {"TOK": {"": said["TOK"]["clip_g"]}})
    assert told == "TOK (2 vectors in clip_g; clip_l leaves it out)"
    want, _ = words.add(clip, said)
    assert torch.equal(encoded(bound, "a TOK")[0], encoded(want, "a TOK")[0])


def test_two_files_can_have_an_encoder_each(clip):
    """As diffusers keeps a word of SDXL."""
    from graft.host.text import words

    both = vectors()["TOK"]
    first, _ = words.add(clip, {"TOK": {"": both["clip_l"]}})
    second, told = words.add(first, {"TOK": {"": both["clip_g"]}})
    at_once, _ = words.add(clip, {"TOK": both})
    assert told == "TOK (2 vectors in clip_g)"
    assert torch.equal(encoded(second, "TOK")[0], encoded(at_once, "TOK")[0])


def test_a_word_of_another_kind_of_model_is_refused_by_its_width(clip, sd15):
    from graft.host.text import words

    with pytest.raises(
        ValueError,
        match=r"TOK is for an encoder \(50 wide\), and the CLIP has clip_g \(64 wide\), c",
    ):
        words.add(clip, vectors(**{"": 50}))
    with pytest.raises(
        ValueError, match=r"is for clip_g \(64 wide\), and the CLIP has clip_l \(48"
    ):
        words.add(sd15, vectors(clip_g=64))
    _, told = words.add(sd15, vectors(clip_l=48, clip_g=64))
    assert told == "TOK (2 vectors in clip_l)"


def test_two_words_of_a_name_clash_unless_they_are_the_same(clip):
    from graft.host.text import words

    once, _ = words.add(clip, vectors())
    again, _ = words.add(once, vectors())
    assert torch.equal(encoded(again, "TOK")[0], encoded(once, "TOK")[0])
    with pytest.raises(ValueError, match="knows a word TOK already, by other vectors"):
        words.add(once, vectors(seed=1))
    other = words.called(vectors(seed=1), "file", "TOK2")
    both, _ = words.add(once, other)
    assert torch.equal(encoded(both, "a TOK")[0], encoded(once, "a TOK")[0])
    assert not torch.equal(encoded(both, "a TOK2")[0], encoded(once, "a TOK")[0])


def test_names_come_from_the_file_its_name_or_the_user():
    from graft.host.text import words

    one, two = torch.ones(1, 2), torch.zeros(1, 2)
    found = {"TOK": {"clip_l": one}, "": {"": two}}
    assert list(words.called(found, "my toy v1.2", "")) == ["TOK", "my_toy_v1_2"]
    assert words.called(found, "x", " a , <b-1> ") == {"a": {"clip_l": one}, "<b-1>": {"": two}}
    with pytest.raises(ValueError, match=r"gives 1 names \(a\), and there are 2 new words: TOK, x"):
        words.called(found, "x", "a")
    for bad in ("a b", "1", "(a)", "a:1", "embedding", ""):
        with pytest.raises(ValueError, match="cannot be a word"):
            words.called({"": {"": one}}, "x", bad or "\u202e")
    with pytest.raises(ValueError, match="the same name twice"):
        words.called(found, "x", "a, a")


@pytest.mark.parametrize("word", ["<cat-toy>", "<s0>", "my-style", "Tök", "a_b"])
def test_words_of_other_trainers_stand_in_prompts(clip, word):
    from graft.host.text import words

    plain, _ = words.add(clip, vectors())
    bound, _ = words.add(clip, {word: vectors()["TOK"]})
    for text in ("a {}", "({}:1.2), a cat", "{}"):
        want = encoded(plain, text.format("TOK"))
        assert torch.equal(encoded(bound, text.format(word))[0], want[0]), text
