# SPDX-License-Identifier: Apache-2.0
"""Train Custom Diffusion and Merge Concepts: what is trained, what is merged, and how near it comes."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.test_dreambooth import call, mini, output, pictures  # noqa: F401 - fixtures

pytestmark = pytest.mark.comfy


def train(wires, token, init, seed, **changes):
    from graft.nodes.custom_diffusion import TrainCustomDiffusion

    given = {
        "dataset": pictures(2, f"a large {token}"),
        "steps": 3,
        "token": token,
        "init": init,
        "learning_rate": 3e-3,
        "class_images": 0,
        "precision": "fp32",
        "seed": seed,
        "name": token,
    }
    return call(TrainCustomDiffusion, wires, **given | changes)


@pytest.fixture(scope="module")
def trained(mini, tmp_path_factory):  # noqa: F811
    import folder_paths

    before = folder_paths.output_directory
    folder_paths.output_directory = str(tmp_path_factory.mktemp("output"))
    yield [train(mini, *of) for of in (("DAX", "star", 1), ("ZORK", "heart", 2))]
    folder_paths.output_directory = before


def merge(wires, adapters, **changes):
    from graft.host.merging.concepts import usual_captions
    from graft.nodes.merge_concepts import MergeConcepts

    given = {f"adapter_{n}": adapter for n, adapter in enumerate(adapters, 1)}
    changes = {"captions": "\n".join(usual_captions()[::8])} | changes
    return call(MergeConcepts, {k: wires[k] for k in ("model", "clip")} | given, **changes)


def keys_of(tensors):
    return {key for key in tensors if not key.startswith("bundle_emb.")}


def test_keys_values_and_the_word_are_trained_and_nothing_else(trained):
    for outcome, token in zip(trained, ("DAX", "ZORK"), strict=True):
        adapter = outcome.result[6]
        keys = keys_of(adapter.tensors)
        assert keys and all(key.endswith((".attn2.to_k.diff", ".attn2.to_v.diff")) for key in keys)
        assert all(bool(adapter.tensors[key].any()) for key in keys)
        assert {k for k in adapter.tensors if k not in keys} == {
            f"bundle_emb.{token}.clip_{encoder}" for encoder in "lg"
        }
        report = outcome.ui["text"][0]
        assert f"{len(keys)} of {len(keys)} tensors applied" in report
        assert "Merge Concepts" in report


def test_what_is_asked_for(monkeypatch, trained, mini):  # noqa: F811
    from graft.nodes import engine

    requests = []
    names = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter", "report")
    made = SimpleNamespace(**{name: name for name in names})
    monkeypatch.setattr(engine.engine, "train", lambda r: requests.append(r) or made)
    train(mini, "DAX", "ktn", 0, learning_rate=0.0)
    train(mini, "DAX", "ktn", 0, learning_rate=0.0, class_dataset=pictures(2, "a thing"))
    plain, prior = requests
    expected = "Full(blocks='cross-attention kv', norms=False, detach_first=True)"
    assert repr(plain.network) == expected
    assert plain.optimizer.algorithm.lr == 1e-5 and prior.optimizer.algorithm.lr == 2e-5
    assert "will drift" in plain.dataset.warnings[-1] and not prior.dataset.warnings
    (concept,) = plain.tokens.concepts
    assert (concept.name, concept.vectors, concept.init) == ("DAX", 1, "ktn")
    assert plain.tokens.retraction == 0.0


def values_of(model, clip, layer, text, changed=None):
    """What a layer makes of a text's tokens, without padding: the first mark, the words, the last mark."""
    from graft.host.files.patched_weights import weight_of
    from graft.host.text.conditioning import encode_text

    weight = weight_of(model, f"diffusion_model.{layer}.weight")
    if changed is not None:
        weight = weight + changed[f"diffusion_model.{layer}.diff"].double()
    count = len(text.split()) + 2
    return encode_text(clip, text).text[0, :count].double() @ weight.T


def test_each_concept_has_the_keys_and_values_of_its_own_training(trained, mini):  # noqa: F811
    adapters = [outcome.result[6] for outcome in trained]
    prompts = ("a large DAX", "a small ZORK")
    model, clip, merged, report = merge(
        mini, adapters, prompts="\n".join(prompts), captions=""
    ).result
    layers = {key[16:-5] for key in keys_of(merged.tensors)}
    assert keys_of(merged.tensors) == keys_of(adapters[0].tensors)
    for prompt, adapter in zip(prompts, adapters, strict=True):
        for layer in sorted(layers):
            own = values_of(mini["model"], clip, layer, prompt, adapter.tensors)[3:]
            base = values_of(mini["model"], clip, layer, prompt)[3:]
            got = values_of(mini["model"], clip, layer, prompt, merged.tensors)[3:]
            assert own.shape[0] == 2  # the word and the last mark; "a" before it is everybody's
            assert float((got - own).norm()) < 1e-4 * float(own.norm())
            assert float((base - own).norm()) > 20 * float((got - own).norm())
        assert f"'{prompt}': off by" in report
    # What no concept's prompt has stays nearer than one training alone leaves it.
    moved = {"merged": 0.0, "alone": 0.0}
    for layer in sorted(layers):
        text = "a photo of a dog on a beach"
        base = values_of(mini["model"], clip, layer, text)
        for name, of in (("merged", merged), ("alone", adapters[0])):
            moved[name] += float(
                (values_of(mini["model"], clip, layer, text, of.tensors) - base).square().sum()
            )
    assert moved["merged"] < moved["alone"]
    assert "captions: keys and values moved by" in report
    assert {k for k in merged.tensors if k.startswith("bundle")} == {
        f"bundle_emb.{word}.clip_{e}" for word in ("DAX", "ZORK") for e in "lg"
    }
    count = len(layers)
    assert f"2 concepts in {count} keys and values: {count} of {count} tensors applied" in report
    assert model is not mini["model"]


def test_saved_and_loaded_trainings_are_merged_to_the_same(trained, mini, output):  # noqa: F811
    from graft.host.files import paths, result
    from graft.nodes.start import LoadLora

    adapters, loaded = [outcome.result[6] for outcome in trained], []
    for adapter in adapters:
        path = result.save_lora(paths.loras_folder() / f"{adapter.name}.safetensors", adapter)
        loaded.append(call(LoadLora, {}, lora=path.name).result[0])
    one, two = (merge(mini, given).result for given in (adapters, loaded))
    assert all(torch.equal(one[2].tensors[k], two[2].tensors[k]) for k in one[2].tensors)
    assert "'a photo of DAX': off by" in one[3] and "'a photo of ZORK': off by" in one[3]


def test_what_cannot_be_merged_is_refused(trained, mini):  # noqa: F811
    from graft.adapters.file import AdapterFile

    one, two = (outcome.result[6] for outcome in trained)
    with pytest.raises(ValueError, match="Two of the adapters have the word DAX"):
        merge(mini, [one, one])
    with pytest.raises(ValueError, match="1 prompts for 2 adapters"):
        merge(mini, [one, two], prompts="a DAX")
    with pytest.raises(ValueError, match="encoded alike"):
        merge(mini, [one, two], prompts="a cat\na cat")
    lora = AdapterFile({"diffusion_model.a.lora_up.weight": torch.ones(2, 1)}, {}, "cat")
    with pytest.raises(ValueError, match="'cat' is no training of Custom Diffusion"):
        merge(mini, [one, lora], prompts="a\nb")
    wordless = AdapterFile({k: one.tensors[k] for k in keys_of(one.tensors)}, {}, "mute")
    with pytest.raises(ValueError, match="'mute' has no new word"):
        merge(mini, [two, wordless])
    other = dataclasses.replace(two, metadata={**two.metadata, "graft.model": "0" * 64})
    assert "trained on another MODEL" in merge(mini, [one, other]).result[3]


def test_the_usual_captions_are_many_and_differ():
    from graft.host.merging.concepts import usual_captions

    captions = usual_captions()
    assert len(captions) == len(set(captions)) == 200
