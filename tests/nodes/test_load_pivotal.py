# SPDX-License-Identifier: Apache-2.0
"""Load Pivotal: a LoRA and its words, from one file and two, in the CLIP that comes out and in no other."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from tests.host.text.test_tokens import encoded, vectors
from tests.nodes.test_load import lora, loras, write  # noqa: F401 - a fixture

pytestmark = pytest.mark.comfy

LAYER = "output_blocks.0.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def load(comfy):
    from graft.nodes.load_pivotal import LoadPivotal

    def call(clip, lora="none", embeddings="none", word="", strengths=(1.0, 1.0), model=None):
        node = type("LoadPivotal", (LoadPivotal,), {"hidden": SimpleNamespace(unique_id="7")})
        with torch.inference_mode():
            return node.execute(clip, lora, embeddings, *strengths, word, model).args

    return call


@pytest.fixture
def folder(comfy):
    """The pack's embeddings folder; what is put there is gone afterwards."""
    from graft.host.text import embeddings

    made = embeddings.register()
    made.mkdir(parents=True, exist_ok=True)
    before = set(made.iterdir())
    yield made
    for file in set(made.iterdir()) - before:
        file.unlink()


@pytest.fixture
def wires(comfy):
    from tests.host import tiny

    return tiny.model("sdxl"), tiny.clip("sdxl")


def bundle(word="TOK", seed=0):
    by_encoder = vectors(seed=seed)["TOK"]
    return {f"bundle_emb.{word}.{key}": value for key, value in by_encoder.items()}


def put(folder, name, tensors):
    """A file that says its word; other folders may have one of the same name, which would count."""
    from safetensors.torch import save_file

    save_file(tensors, folder / name, {"modelspec.trigger_phrase": "TOK"})
    return name


def test_one_file_and_two_give_the_same(load, loras, folder, wires):  # noqa: F811
    from graft.host.text import tokens

    model, clip = wires
    layers = lora(model.model.diffusion_model, [LAYER])
    write(loras, layers | bundle(), "one.safetensors")
    write(loras, layers, "two.safetensors")
    put(folder, "pivotal word.safetensors", vectors()["TOK"])
    one = load(clip, "one.safetensors", model=model, strengths=(0.5, 1.0))
    two = load(
        clip, "two.safetensors", "pivotal word.safetensors", model=model, strengths=(0.5, 1.0)
    )
    want = encoded(tokens.bind(clip, vectors()), "a (TOK:1.2) in a box")[0]
    for patched, bound, trigger, report in (one, two):
        assert [p[0] for p in patched.patches[f"diffusion_model.{LAYER}.weight"]] == [0.5]
        assert torch.equal(encoded(bound, "a (TOK:1.2) in a box")[0], want)
        assert trigger == "TOK" and "2 of 2 tensors" in report
        assert report.endswith("\nNew words: TOK (2 vectors in clip_g and clip_l)")
    assert not model.patches and not tokens.words(clip)


def test_words_alone_need_no_model_and_take_any_name(load, folder, wires):
    model, clip = wires
    torch.save({"<toy>": torch.ones(64)}, folder / "learned_embeds.bin")
    patched, bound, trigger, report = load(clip, embeddings="learned_embeds.bin", word="duck")
    assert patched is None and trigger == "duck"
    assert report == "New words: duck (1 vector in clip_g; clip_l leaves it out)"
    assert not torch.equal(encoded(bound, "a duck")[0], encoded(clip, "a duck")[0])


def test_two_bundles_of_one_word_do_not_collide(load, loras, wires):  # noqa: F811
    """The second is refused by the first's word, and goes by another."""
    from graft.host.text import tokens

    model, clip = wires
    layers = lora(model.model.diffusion_model, [LAYER])
    for seed, name in enumerate(("a", "b")):
        write(loras, layers | bundle(seed=seed), f"{name}.safetensors")
    patched, bound, *_ = load(clip, "a.safetensors", model=model)
    with pytest.raises(ValueError, match="knows a word TOK already.*another name in word"):
        load(bound, "b.safetensors", model=patched)
    twice, both, trigger, _ = load(bound, "b.safetensors", word="TOK2", model=patched)
    assert len(twice.patches[f"diffusion_model.{LAYER}.weight"]) == 2 and trigger == "TOK2"
    words = {"TOK": vectors()["TOK"], "TOK2": vectors(seed=1)["TOK"]}
    text = "a TOK with a (TOK2:0.8)"
    assert torch.equal(encoded(both, text)[0], encoded(tokens.bind(clip, words), text)[0])
    assert torch.equal(encoded(clip, text)[0], encoded(tokens.bind(clip, {}), text)[0])


def test_what_cannot_be_loaded_is_refused(load, loras, folder, wires):  # noqa: F811
    model, clip = wires
    layers = lora(model.model.diffusion_model, [LAYER])
    write(loras, layers, "plain.safetensors")
    write(loras, layers | bundle(), "own.safetensors")
    put(folder, "pivotal word.safetensors", vectors(seed=3)["TOK"])
    with pytest.raises(ValueError, match="There is nothing to load: choose a file"):
        load(clip)
    with pytest.raises(ValueError, match="'plain' bundles no new words: choose a file"):
        load(clip, "plain.safetensors", model=model)
    with pytest.raises(ValueError, match="'own' has 2 tensors of a LoRA beside its words: connect"):
        load(clip, "own.safetensors")
    with pytest.raises(
        ValueError, match="'own' bundles the word TOK, and 'pivotal word.safetensors' has"
    ):
        load(clip, "own.safetensors", "pivotal word.safetensors", model=model)


def test_the_widgets_are_checked_before_a_run(loras, folder, wires):  # noqa: F811
    from graft.nodes.load_pivotal import LoadPivotal

    put(folder, "pivotal mine.safetensors", vectors()["TOK"])
    assert LoadPivotal.validate_inputs("none", "pivotal mine.safetensors") is True
    assert "gone.pt" in LoadPivotal.validate_inputs("none", "gone.pt")
    assert "gone.safetensors" in LoadPivotal.validate_inputs("gone.safetensors", "none")
    before = LoadPivotal.fingerprint_inputs("none", "pivotal mine.safetensors")
    put(folder, "pivotal mine.safetensors", vectors(n=3)["TOK"])
    assert LoadPivotal.fingerprint_inputs("none", "pivotal mine.safetensors") != before
    names = [i.id for i in LoadPivotal.define_schema().inputs]
    asked = inspect.signature(LoadPivotal.execute).parameters
    assert names == list(asked)
