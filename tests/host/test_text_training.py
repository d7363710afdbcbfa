# SPDX-License-Identifier: Apache-2.0
"""Textual inversion and pivotal tuning by the engine on tiny real ComfyUI models."""

import dataclasses

import pytest
import torch

from tests.host.test_engine import dataset, request

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def wires():
    from tests.host import tiny

    with torch.inference_mode():
        return {
            f"{kind}{family}": getattr(tiny, name)(family)
            for family in ("sdxl", "sd15")
            for kind, name in (("", "model"), ("clip_", "clip"), ("vae_", "vae"))
        }


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def tokens(**settings):
    from graft.adapters.tokens import Concept, Tokens

    retraction = settings.pop("retraction", 0.1)
    return Tokens((Concept(**settings),), retraction)


def train(wires, family="sdxl", words=None, **changes):
    from graft.host import engine

    changes.setdefault("dataset", dataset(caption="a photo of TOK"))
    with torch.inference_mode():
        asked = request(wires, family, **changes)
        return engine.train(dataclasses.replace(asked, tokens=words or tokens()))


def words_of(outcome):
    return {k: v for k, v in outcome.adapter.tensors.items() if k.startswith("bundle_emb.")}


def begun(wires, family, words):
    from graft.adapters.tokens import TokenVectors
    from graft.host.tokens import tables

    return TokenVectors(words, tables(wires[f"clip_{family}"], words), seed=0).tensors()


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_textual_inversion_moves_the_words_and_nothing_else(wires, family):
    words = tokens(vectors=3, init="dog")
    outcome = train(wires, family, words, blocks="none")
    assert set(outcome.adapter.tensors) == set(words_of(outcome)) and outcome.lora_model == {}
    before = begun(wires, family, words)
    assert set(before) == set(words_of(outcome))
    for key, value in words_of(outcome).items():
        assert value.shape == before[key].shape
        assert (value != before[key]).any(dim=1).all(), "every row has learned"


def test_pivotal_tuning_trains_both(wires):
    outcome = train(wires)
    assert len(words_of(outcome)) == 2 and len(outcome.lora_model) > 10
    up = [v for k, v in outcome.lora_model.items() if k.endswith("lora_up.weight")]
    assert all(v.abs().sum() > 0 for v in up)


def test_after_the_pivot_the_words_stay_bit_for_bit(wires):
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.prodigy import Prodigy

    def run(steps):
        return train(
            wires,
            steps=steps,
            optimizer=Optimizer(Prodigy(), embedding_stop=0.5),
            plan={"total_steps": 6},
        )

    pivot, end = run(3), run(6)
    for key, value in words_of(end).items():
        assert torch.equal(value, words_of(pivot)[key])
    assert not torch.equal(
        *(torch.cat([v.flatten() for v in o.lora_model.values()]) for o in (pivot, end))
    )


def test_the_batch_can_be_cut_in_any_way(wires):
    losses, words = [], []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        made = train(wires, plan={"batch_size": batch_size, "accumulate": accumulate})
        losses.append(torch.tensor(made.loss_map["loss"]))
        words.append(torch.cat([v.flatten() for v in words_of(made).values()]))
    for other in losses[1:]:
        assert torch.allclose(other, losses[0], rtol=1e-5)
    for other in words[1:]:
        assert torch.allclose(other, words[0], atol=1e-4)


def test_three_and_three_steps_are_six(wires, tmp_path):
    from graft.host import states
    from graft.trainers.optimizers import Optimizer

    settings = {"optimizer": Optimizer(ema_decay=0.9), "plan": {"total_steps": 6}}
    whole = train(wires, steps=6, **settings)
    half = train(wires, steps=3, **settings)
    path = states.save(tmp_path, "half", half.state)
    rest = train(wires, steps=3, state=states.load(path), **settings)
    assert whole.loss_map["loss"] == rest.loss_map["loss"]
    for key, value in whole.adapter.tensors.items():
        assert torch.equal(value, rest.adapter.tensors[key]), key


def test_checkpointing_changes_nothing(wires):
    plain = train(wires)
    again = train(wires, plan={"checkpointing": "on"})
    assert plain.loss_map["loss"] == again.loss_map["loss"]
    for key, value in words_of(plain).items():
        assert torch.equal(value, words_of(again)[key])


def test_clip_out_knows_the_word_and_the_file_gives_the_same(wires, output):
    from graft.host import embeddings

    outcome = train(wires)
    clip = wires["clip_sdxl"]
    (path,) = embeddings.save(outcome.adapter)
    assert path == output / "embeddings" / "TOK.safetensors"

    reader = clip.clone()
    import copy

    reader.tokenizer = copy.copy(clip.tokenizer)
    for name in ("clip_l", "clip_g"):
        part = copy.copy(getattr(clip.tokenizer, name))
        part.embedding_directory = [str(path.parent)]
        setattr(reader.tokenizer, name, part)

    def encoded(clip, text):
        with torch.inference_mode():
            return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)

    got = encoded(outcome.clip, "a (TOK:1.2) on a table")
    want = encoded(reader, "a (embedding:TOK :1.2) on a table")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not torch.equal(got[0], encoded(clip, "a (TOK:1.2) on a table")[0])


def test_preserving_takes_the_word_out(wires):
    from graft.trainers.objectives import Objective

    for where in ("samples", "instances"):
        objective = Objective(preserve=1.0, preserve_on=where, class_word="dog")
        data = dataset(caption="a photo of TOK")
        made = train(wires, objective=objective, dataset=dataclasses.replace(data, trigger=""))
        assert len(made.loss_map["loss"]) == 4


def test_a_preview_shows_the_word_as_it_is(wires):
    from graft.trainers.preview import Preview

    shown = Preview(("a TOK", "a dog"), steps=2, width=64, height=64, every=2)
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    made = [
        train(wires, preview=shown, blocks="none", optimizer=Optimizer(AdamW(lr=lr)), name=f"p{lr}")
        for lr in (0.001, 1.0)
    ]
    first, second = (m.images for m in made)
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])
    assert "MODEL out gives the last preview's first picture within 0 " in made[0].report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "a cat"}, "No caption of the dataset names TOK"),
        ({"words": None, "blocks": "none"}, "nothing would be trained"),
    ],
)
def test_what_cannot_be_learned_is_refused(wires, changes, message):
    from graft.host import engine

    changes = dict(changes)
    if "dataset" in changes:
        changes["dataset"] = dataset(caption=changes["dataset"])
    words = changes.pop("words", tokens())
    with pytest.raises(ValueError, match=message), torch.inference_mode():
        engine.train(dataclasses.replace(request(wires, **changes), tokens=words))
