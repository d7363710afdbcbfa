# SPDX-License-Identifier: Apache-2.0
"""The study of adapter positions: what it trains, that it goes on where it was, and what it says of known scores."""

import dataclasses

import pytest
import torch

from tests.metrics.test_anova import PAPER

pytestmark = pytest.mark.comfy
PAIRS = (("attn2o", "ffni"), ("attn1i", "transo"))


@pytest.fixture
def request_(comfy, tmp_path, monkeypatch):
    import folder_paths

    from graft.host.model.mini import load_mini
    from graft.host.request import Request
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def pictures(first):
        seeds = (torch.Generator().manual_seed(first + n) for n in range(2))
        return Dataset(
            tuple(Item("a dax", pixels=torch.rand(64, 64, 3, generator=g)) for g in seeds)
        )

    with torch.inference_mode():
        model, clip, vae = load_mini()
    return Request(
        model=model,
        clip=clip,
        vae=vae,
        dataset=pictures(0),
        validation=pictures(9),
        objective=Objective(preserve=0.0),
        optimizer=Optimizer(AdamW(1e-2)),
        plan=Plan(2, seed=3),
    )


def test_every_position_is_trained_from_every_seed_and_none_twice(request_, monkeypatch):
    from graft.host import engine
    from graft.host.studies import positions as position_study
    from graft.host.studies.positions import LOSS, Measured, study

    real, trained = engine.train, []

    def train(request):
        trained.append((request.network.positions, request.plan.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(request)

    monkeypatch.setattr(position_study.engine, "train", train)
    with torch.inference_mode():
        with pytest.raises(KeyboardInterrupt):
            study(request_, PAIRS, 4, 2, Measured(LOSS))
        found = study(request_, PAIRS, 4, 2, Measured(LOSS))
        again = study(request_, PAIRS, 4, 2, Measured(LOSS))
    assert trained == [
        ("attn2o-ffni", 3), ("attn1i-transo", 3), ("attn2o-ffni", 4), ("attn2o-ffni", 4),
        ("attn1i-transo", 4),
    ]  # fmt: skip
    assert found == again and [len(scores) for scores in found.values()] == [2, 2]
    assert len({score for scores in found.values() for score in scores}) == 4


def test_what_a_study_needs_is_asked_for_before_anything_is_trained(request_):
    from graft.host.studies.positions import LOSS, SCORER, Measured, pairs, study

    bare = dataclasses.replace(request_, validation=None)
    with pytest.raises(ValueError, match="Split Dataset"):
        study(bare, PAIRS, 4, 1, Measured(LOSS))
    with pytest.raises(ValueError, match="Training Preview"):
        study(bare, PAIRS, 4, 1, Measured(SCORER, "shape=arrow"))
    from graft.trainers.preview import Preview

    shown = dataclasses.replace(bare, preview=Preview(("a dax",)))
    with pytest.raises(ValueError, match="the scorer knows: .*arrow"):
        study(shown, PAIRS, 4, 1, Measured(SCORER, "shape=banana"))
    assert len(pairs("all")) == 20 and pairs("attn2o-ffni") == PAIRS[:1]
    with pytest.raises(ValueError, match="from ffno it can go to transo"):
        pairs("ffno-attn1i")


def test_the_scorer_judges_the_previews_last_pictures(comfy):
    from types import SimpleNamespace

    from graft.host.studies.positions import SCORER, Measured
    from graft.metrics.scorer import load_scorer
    from graft.tools.mini.make_concepts import SHAPE  # noqa: F401 - the shape is the shipped one

    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    chances = [
        Measured(SCORER, f"shape={label}")(SimpleNamespace(images=images))
        for label in load_scorer().labels["shape"]
    ]
    assert sum(chances) == pytest.approx(1.0, abs=1e-5) and max(chances) < 1


def test_the_report_finds_in_the_papers_scores_what_the_paper_says(comfy):
    from graft.host.studies.positions import report

    image, text = report({pair: [score] for pair, score in PAPER.items()}, "CLIP similarity")
    assert image.shape[0] == 1
    lines = text.splitlines()
    assert {lines[2], lines[3]} == {"  attn2o-ffni: 0.8690", "  attn2c-attn2c: 0.8690"}
    by_input, by_output, after = lines[-3:]
    assert "F(9, 10) = 11.9, p = 0.0003" in by_input
    assert "p = 0.61" in by_output
    assert "F(1, 15) = 55.3, p = 2.1e-06 (before 0.7174, after 0.8336)" in after
    worst = report({pair: [score] for pair, score in PAPER.items()}, "loss", less_is_better=True)[1]
    assert worst.splitlines()[2] == "  attn1o-transo: 0.6860"
