# SPDX-License-Identifier: Apache-2.0
"""The shipped scorer on drawings it has not seen."""

import pytest
import torch

from graft.metrics import scorer
from graft.tools.mini import drawing, pretrain_scorer
from graft.tools.mini import vocabulary as words


@pytest.fixture(scope="module")
def judge():
    return scorer.load_scorer()


def test_scorer_is_right_on_fresh_drawings(judge):
    shares = pretrain_scorer.measure(judge, count=384, seed=20250101)
    assert set(shares) == {"shape", "colour", "background", "texture"}
    assert min(shares.values()) >= 0.98, shares


def test_scorer_judges_other_sizes_and_formats(judge):
    generator = torch.Generator().manual_seed(1)
    attributes = drawing.random_attributes(32, generator)
    pictures = drawing.draw(attributes, generator, 128, 128).movedim(1, -1)
    verdict = judge.judge(pictures)["background"]
    wanted = [words.COLOUR_NAMES[index] for index in attributes.background.tolist()]
    assert sum(a == b for a, b in zip(verdict.labels, wanted, strict=True)) >= 31
    assert verdict.probabilities.shape == (32,)


def test_a_sample_counts_only_when_the_scorer_is_certain():
    verdict = scorer.Verdict(("star", "star", "ring"), torch.tensor([0.9, 0.4, 0.9]))
    assert verdict.matches("star") == [True, False, False]


def test_missing_scorer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        scorer.load_scorer(tmp_path / "nothing.safetensors")
