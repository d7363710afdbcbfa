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


def train(wires, family="sdxl", words=None, text_network=None, **changes):
    from graft.host import engine

    changes.setdefault("dataset", dataset(caption="a photo of TOK"))
    words = words or (None if text_network else tokens())
    with torch.inference_mode():
        asked = request(wires, family, **changes)
        asked = dataclasses.replace(asked, tokens=words, text_network=text_network)
        return engine.train(asked)


def text_lora(blocks="all", rank=2):
    from graft.adapters.lora import LoRA

    return LoRA(rank=rank, blocks=blocks)


def words_of(outcome):
    return {k: v for k, v in outcome.adapter.tensors.items() if k.startswith("bundle_emb.")}


def begun(wires, family, words):
    from graft.adapters.tokens import TokenVectors
    from graft.host.text.tokens import tables

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
    from graft.host.files import states
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
    from graft.host.text import embeddings

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


def test_load_pivotal_gives_what_the_training_handed_over(wires, output):
    """One file and two: the prompt that was trained is encoded alike, and the weights are the same."""
    from graft.adapters.lora import LoRA
    from graft.host.files import lora_files, patched_weights, paths, pivotal, result
    from graft.host.files.strengths import WHOLE
    from graft.host.text import embeddings
    from tests.host.text.test_tokens import encoded

    made = train(wires, network=LoRA(rank=2, blocks="attention"))
    bundle = result.save_lora(paths.loras_folder() / "bundle.safetensors", made.adapter)
    layers = dataclasses.replace(made.adapter, tensors=made.lora_model)
    result.save_lora(paths.loras_folder() / "layers.safetensors", layers)
    (word,) = embeddings.save(made.adapter, "other name")
    model, clip = wires["sdxl"], wires["clip_sdxl"]
    text = "a TOK on a red background"
    want = encoded(made.clip, text)
    for lora, file in ((bundle.name, None), ("layers.safetensors", word)):
        with torch.inference_mode():
            loaded = pivotal.load(model, clip, lora_files.load_any(lora), file, "", WHOLE)
        assert loaded.trigger == "TOK"
        assert all(map(torch.equal, encoded(loaded.clip, text), want))
        assert set(loaded.model.patches) == set(made.model.patches) != set()
        for key in made.model.patches:
            one, two = (patched_weights.weight_of(m, key) for m in (loaded.model, made.model))
            assert torch.equal(one, two), key
    assert not torch.equal(encoded(clip, text)[0], want[0])


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


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_text_encoders_learn_where_the_model_sees_it(wires, family):
    outcome = train(wires, family, text_network=text_lora(), blocks="none")
    ups = {k: v for k, v in outcome.lora_model.items() if k.endswith("lora_up.weight")}
    assert all(k.startswith("text_encoders.") for k in ups)
    assert all(v.abs().sum() > 0 for v in ups.values())
    trained = {k.split(".layers.")[0] + k.split(".layers.")[1][0] for k in ups if ".layers." in k}
    clip_l = "text_encoders.clip_l.transformer.text_model.encoder"
    if (
        family == "sdxl"
    ):  # CLIP L's last layer is skipped, CLIP G's is where the pooled text comes from
        clip_g = clip_l.replace("clip_l", "clip_g")
        assert trained == {f"{clip_l}{i}" for i in (0, 1)} | {f"{clip_g}{i}" for i in (0, 1, 2)}
        assert any("clip_g.transformer.text_projection" in k for k in ups)
    else:
        assert trained == {f"{clip_l}{i}" for i in (0, 1, 2)}
    n = len(outcome.lora_model)
    assert f"{n} of {n} tensors applied" in outcome.report


def test_clip_out_is_what_was_trained(wires):
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.preview import Preview

    outcome = train(
        wires,
        words=tokens(),
        text_network=text_lora(),
        optimizer=Optimizer(AdamW(lr=0.01)),
        preview=Preview(("a TOK dog",), steps=2, width=64, height=64),
    )
    from tests.host.text.test_tokens import encoded

    assert not torch.equal(
        encoded(outcome.clip, "a dog")[0], encoded(wires["clip_sdxl"], "a dog")[0]
    )
    from graft.host.preview import sampled as preview

    with torch.inference_mode():
        settings = Preview(("a TOK dog",), steps=2, width=64, height=64)
        prompts = preview.encode_prompts(outcome.clip, settings)
        latents = preview.sampled(outcome.model, prompts, settings, wires["vae_sdxl"], (64, 64))
        again = preview.decoded(wires["vae_sdxl"], latents[0])
    assert (again - outcome.images).abs().max() < 1e-3


def test_the_base_keeps_its_own_text(wires, monkeypatch):
    """With the text of the trained encoders the base would give what the model gives, and nothing would be kept."""
    from graft.host.data.training_data import TrainingData
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    def losses(preserve):
        data = dataset(caption="a zork thing")
        objective, optimizer = Objective(preserve=preserve), Optimizer(AdamW(lr=1e-2))
        changes = {"objective": objective, "optimizer": optimizer, "dataset": data, "steps": 3}
        made = train(wires, text_network=text_lora(), blocks="none", **changes)
        return torch.tensor(made.loss_map["loss"], dtype=torch.float64)

    kept, without = losses(100.0), losses(0.0)
    assert kept[0] == pytest.approx(float(without[0]), rel=1e-6)
    assert kept[1] - without[1] > 1e-4
    monkeypatch.setattr(TrainingData, "_base_cond", lambda self, *args: None)
    assert torch.allclose(losses(100.0), without, rtol=1e-6)


@pytest.mark.parametrize("cut", [(4, 1), (2, 2), (1, 4)])
def test_a_text_network_can_be_cut_stopped_and_resumed(wires, tmp_path, cut):
    from graft.host.files import states
    from graft.trainers.optimizers import Optimizer

    settings = {
        "text_network": text_lora("attention"),
        "optimizer": Optimizer(text_lr=0.001, text_stop=0.5),
        "plan": {"total_steps": 4, "batch_size": cut[0], "accumulate": cut[1]},
    }
    whole = train(wires, steps=4, **settings)
    half = train(wires, steps=2, **settings)
    rest = train(
        wires, steps=2, state=states.load(states.save(tmp_path, "h", half.state)), **settings
    )
    for key, value in whole.adapter.tensors.items():
        assert torch.equal(value, rest.adapter.tensors[key]), key
        if key.startswith("text_encoders."):
            assert torch.equal(value, half.adapter.tensors[key]), "stopped at half of the plan"
    if cut != (4, 1):
        plan = {"plan": {"total_steps": 4, "batch_size": 4}}
        at_once = train(wires, steps=4, **settings | plan)
        assert torch.allclose(
            torch.tensor(whole.loss_map["loss"]), torch.tensor(at_once.loss_map["loss"]), rtol=1e-5
        )


@pytest.mark.parametrize("name", ["dora", "loha", "lokr", "oft", "ia3"])
def test_every_network_trains_text_encoders(wires, name):
    from graft.adapters import NETWORKS
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.preview import Preview

    kind = NETWORKS.get(name)
    network = kind(blocks="attention", **({"rank": 2} if hasattr(kind, "rank") else {}))
    outcome = train(
        wires,
        text_network=network,
        blocks="none",
        optimizer=Optimizer(AdamW(lr=0.01)),
        preview=Preview(("a dog",), steps=2, width=64, height=64),
    )
    n = len(outcome.lora_model)
    assert n and f"{n} of {n} tensors applied" in outcome.report
    from graft.host.preview import sampled as preview
    from tests.host.text.test_tokens import encoded

    settings = Preview(("a dog",), steps=2, width=64, height=64)
    with torch.inference_mode():
        prompts = preview.encode_prompts(outcome.clip, settings)
        latents = preview.sampled(outcome.model, prompts, settings, wires["vae_sdxl"], (64, 64))
        again = preview.decoded(wires["vae_sdxl"], latents[0])
    assert (again - outcome.images).abs().max() < 1e-3
    tuned, base = (encoded(c, "a dog")[0] for c in (outcome.clip, wires["clip_sdxl"]))
    assert not torch.equal(tuned, base)


def test_a_bundle_is_trained_further(wires, output):
    """Words and layers begin as they are in the file; a word that is not trained is left out and told."""
    from graft.host.files import lora_files
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW

    first = train(wires)
    (output / "loras").mkdir(exist_ok=True)
    from graft.host.files import paths, result

    result.save_lora(paths.loras_folder() / "bundle.safetensors", first.adapter)
    file = lora_files.load("bundle.safetensors")
    still = {"optimizer": Optimizer(AdamW(lr=1e-12)), "steps": 1, "start_from": file}
    again = train(wires, words=tokens(retraction=0.0), **still)
    for key, value in first.adapter.tensors.items():
        assert torch.allclose(again.adapter.tensors[key], value, atol=1e-9), key
    assert "the words TOK begin as they are in it" in again.report
    with pytest.raises(ValueError, match="The word TOK is .*clip_g.: .2, 64"):
        train(wires, words=tokens(vectors=3), **still)
    words = dataclasses.replace(file, tensors=words_of(first))
    alone = train(wires, words=tokens(retraction=0.0), **still | {"start_from": words})
    for key, value in words_of(first).items():
        assert torch.allclose(alone.adapter.tensors[key], value, atol=1e-9), key
    other = dataset(caption="a photo of HAT")
    left = train(wires, words=tokens(name="HAT"), **still | {"dataset": other})
    warned = [e for e in _events(output, left.run) if e["kind"] == "warned"]
    assert any("the new words TOK; a Concept Token" in event["text"] for event in warned)


def _events(output, run):
    import json

    lines = (output / "graft" / run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_file_of_one_encoder_is_read_by_the_host(wires, output):
    from comfy import sd1_clip

    from graft.host.text import embeddings

    outcome = train(wires, "sd15", words=tokens(vectors=3))
    (path,) = embeddings.save(outcome.adapter, "mine.safetensors")
    assert path.name == "mine.safetensors"
    read = sd1_clip.load_embed("mine", [str(path.parent)], 48, "clip_l")
    assert torch.equal(read, outcome.adapter.tensors["bundle_emb.TOK.clip_l"])
    with pytest.raises(ValueError, match="has no new words to save"):
        embeddings.save(dataclasses.replace(outcome.adapter, tensors=outcome.lora_model))
