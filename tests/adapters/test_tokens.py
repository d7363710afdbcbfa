# SPDX-License-Identifier: Apache-2.0
"""Token vectors: where they begin, how their size is drawn back, and which words of a text they are."""

import pytest
import torch

from graft.adapters.learned import Learned
from graft.adapters.tokens import Concept, Table, Tokens, TokenVectors, pattern


def table(width=6, std=0.02):
    words = {"a dog": torch.arange(2.0 * width).reshape(2, width)}
    return Table(width, std, words)


def made(*concepts, retraction=0.1, seed=0, **tables):
    tables = tables or {"clip_l": table(), "clip_g": table(10, 0.05)}
    return TokenVectors(Tokens(concepts or (Concept(),), retraction), tables, seed)


def test_words_to_begin_with_are_repeated():
    vectors = made(Concept("TOK", 5, "a dog"), clip_l=table()).vectors["TOK"]["clip_l"]
    assert torch.equal(vectors.detach(), table().words["a dog"][[0, 1, 0, 1, 0]])


def test_noise_has_the_size_of_the_encoders_words_and_is_the_seeds():
    wide = {"clip_l": table(4096, 0.03)}
    one, again = (made(Concept("TOK", 8), **wide).tensors() for _ in range(2))
    other = made(Concept("TOK", 8), seed=1, **wide).tensors()
    key = "bundle_emb.TOK.clip_l"
    assert torch.equal(one[key], again[key]) and not torch.equal(one[key], other[key])
    assert float(one[key].std()) == pytest.approx(0.03, rel=0.02)


def test_retraction_has_a_closed_form():
    """``std_k = std0 (std_begin / std0)^(0.9^k)``, jointly over the words of an encoder."""
    words = made(Concept("A", 2, "a dog"), Concept("B", 3, "a dog"))

    def spread(key):
        return float(torch.cat([v[key].detach().flatten() for v in words.vectors.values()]).std())

    for key, goal in (("clip_l", 0.02),):
        begun = spread(key)
        for k in range(1, 6):
            words.settle()
            assert spread(key) == pytest.approx(goal * (begun / goal) ** (0.9**k), rel=1e-4)
    still = made(Concept("A", 2, "a dog"), retraction=0.0, clip_l=table())
    before = still.tensors()
    still.settle()
    assert all(torch.equal(v, before[k]) for k, v in still.tensors().items())


def test_all_that_is_saved_can_be_loaded_under_another_seed():
    words, other = made(), made(seed=5)
    other.load(words.tensors())
    for key, value in words.tensors().items():
        assert torch.equal(other.tensors()[key], value)


def test_what_does_not_fit_is_refused():
    words = made(Concept("TOK", 2))
    with pytest.raises(ValueError, match="TOK2.* in the settings only"):
        made(Concept("TOK", 2), Concept("TOK2")).load(words.tensors())
    with pytest.raises(ValueError, match="2, 6.* in the state and .3, 6.* in the settings"):
        made(Concept("TOK", 3)).load(words.tensors())
    with pytest.raises(ValueError, match="TOK is there twice"):
        Tokens((Concept(), Concept()))
    for name in ("", "1st", "a b", "nan", "embedding", "TOK,", "(TOK)", "TOK\n"):
        with pytest.raises(ValueError, match="cannot be a concept's name"):
            Concept(name)


def test_names_are_whole_words_the_longest_first():
    found = pattern(["TOK", "TOK2", "s"]).findall("TOK2, (TOK:1.2) TOKYO tok a TOK's x_TOK")
    assert found == ["TOK2", "TOK", "TOK", "s"]
    assert Tokens((Concept("TOK"), Concept("TOK2"))).found("a TOK2 b TOK2") == ("TOK2",)


class Part:
    """A network without layers."""

    layers: dict = {}

    def parameters(self):
        return {}

    def tensors(self, prefix):
        return {}

    def load(self, tensors, prefix):
        assert not tensors


def test_words_are_settled_only_when_they_have_moved():
    words = made(Concept("A", 2, "a dog"))
    learned, before = Learned(Part(), tokens=words), words.tensors()
    learned.settle(["input_blocks.1.up"])
    assert all(torch.equal(v, before[k]) for k, v in learned.tensors().items())
    learned.settle(["embeddings.A.clip_l"])
    assert all(not torch.equal(v, before[k]) for k, v in learned.tensors().items())


def test_a_state_of_other_parts_is_refused():
    words = made()
    with pytest.raises(ValueError, match="Only the state does train new words"):
        Learned(Part()).load(words.tensors())
    with pytest.raises(ValueError, match="Only the settings do train new words"):
        Learned(Part(), tokens=words).load({})
