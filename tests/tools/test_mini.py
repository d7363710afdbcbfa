# SPDX-License-Identifier: Apache-2.0
"""Drawings, captions, concept sets and the shipped miniature model."""

import random

import pytest
import torch

from graft.host.model import mini
from graft.tools.mini import captions, drawing, legs, make_concepts, make_photos
from graft.tools.mini import vocabulary as words


def _draw(seed, count=24, **options):
    generator = torch.Generator().manual_seed(seed)
    attributes = drawing.random_attributes(count, generator, len(words.SHAPES), len(words.TEXTURES))
    return drawing.draw(attributes, generator, **options)


def test_drawings_depend_on_the_seed_only():
    assert torch.equal(_draw(3), _draw(3))
    assert not torch.equal(_draw(3), _draw(4))


@pytest.mark.parametrize("size", drawing.PICTURE_SIZES)
def test_drawings_fill_every_picture_size(size):
    pictures = _draw(0, height=size[0], width=size[1])
    assert pictures.shape == (24, 3, *size)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert (pictures.flatten(2).std(-1).amax(1) > 0.02).all()


def test_every_shape_and_texture_looks_different():
    count = len(words.SHAPES)
    zeros = torch.zeros(count, dtype=torch.long)
    attributes = drawing.Attributes(torch.arange(count), zeros, zeros + 2, zeros, zeros + 2)
    pictures = drawing.draw(attributes, torch.Generator().manual_seed(0)).flatten(1)
    assert torch.pdist(pictures).min() > 5
    textures = torch.arange(len(words.TEXTURES))
    same = torch.zeros_like(textures)
    attributes = drawing.Attributes(same, same, same + 2, textures, same)
    assert (
        torch.pdist(drawing.draw(attributes, torch.Generator().manual_seed(0)).flatten(1)).min() > 3
    )


def test_attributes_cover_everything_and_colours_never_coincide():
    attributes = drawing.random_attributes(4000, torch.Generator().manual_seed(0))
    assert (
        set(attributes.shape.tolist()) == set(range(words.BASE_SHAPES)) and words.BASE_SHAPES >= 8
    )
    assert (
        set(attributes.texture.tolist()) == set(range(words.BASE_TEXTURES))
        and words.BASE_TEXTURES >= 3
    )
    assert len(set(attributes.colour.tolist())) == len(set(attributes.background.tolist())) == 8
    assert not (attributes.colour == attributes.background).any()


def test_captions_can_be_read_back():
    for text, asked in captions.prompts(500, seed=5):
        found = captions.parse(text)
        assert {kind: found[kind] for kind in ("shape", "colour", "background")} == {
            kind: asked[kind] for kind in ("shape", "colour", "background")
        }, text
        for kind in ("size", "texture"):
            assert found.get(kind, asked[kind]) == asked[kind], text


def test_captions_vary_and_leave_attributes_out():
    chooser = random.Random(0)
    entry = {
        "shape": "star",
        "colour": "red",
        "background": "blue",
        "texture": "dotted",
        "size": "large",
    }
    said = [captions.caption(entry, chooser) for _ in range(400)]
    assert len(set(said)) > 100
    assert any(captions.UNKNOWN in text for text in said)
    assert any("red" not in text for text in said)
    used = {word.strip(",") for text in said for word in text.split()}
    assert used - {captions.UNKNOWN, ""} <= set(captions.all_words())


def test_concept_words_are_not_in_the_grammar():
    for concept in make_concepts.SETS:
        assert concept.word not in captions.all_words()
        names = words.SHAPES if concept.kind == "shape" else words.TEXTURES
        limit = words.BASE_SHAPES if concept.kind == "shape" else words.BASE_TEXTURES
        is_new = concept is not make_concepts.WORD
        assert (names.index(concept.label) >= limit) == is_new


@pytest.mark.parametrize("concept", make_concepts.SETS, ids=lambda concept: concept.name)
def test_shipped_concept_sets_are_what_the_script_makes(concept, tmp_path):
    make_concepts.write(concept, tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    shipped = sorted(path.name for path in (make_concepts.FOLDER / concept.name).iterdir())
    assert made == shipped and len([name for name in made if name.endswith(".png")]) == 12
    for name in made:
        shipped_bytes = (make_concepts.FOLDER / concept.name / name).read_bytes()
        if name.endswith(".txt"):
            assert (tmp_path / name).read_bytes() == shipped_bytes
            assert concept.word in shipped_bytes.decode().split()


def test_fresh_concept_prompts_avoid_the_pairs_of_the_set():
    for _, entry in make_concepts.fresh_prompts(make_concepts.SHAPE, 64, seed=0):
        assert (entry["colour"], entry["background"]) not in make_concepts.PAIRS


def test_photographs_have_captions_and_sizes_for_buckets():
    image = pytest.importorskip("PIL.Image")
    shapes = set()
    for name, *_ in make_photos.PHOTOS:
        with image.open(make_photos.FOLDER / f"{name}.jpg") as picture:
            shapes.add(round(picture.width / picture.height, 2))
            assert 400 <= min(picture.size) and max(picture.size) <= 1024
        assert (make_photos.FOLDER / f"{name}.txt").read_text().strip()
    assert len(shapes) >= 4
    assert sum(path.stat().st_size for path in make_photos.FOLDER.iterdir()) < 1.5e6


def test_learning_rate_warms_up_and_ends_at_the_floor():
    rates = [legs.learning_rate(step, 1000, 1.0, warm_up=100) for step in range(1200)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == 1.0
    assert rates[1100] == pytest.approx(0.02) and rates[1199] == pytest.approx(0.02)


def test_checkpoints_come_back_whole(tmp_path):
    legs.save_atomic({"model": {"w": torch.arange(3.0)}, "step": 5}, tmp_path / "a.pt")
    state = legs.load_checkpoint(tmp_path / "a.pt")
    assert state["step"] == 5 and torch.equal(state["model"]["w"], torch.arange(3.0))
    assert legs.load_checkpoint(tmp_path / "b.pt") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_missing_or_broken_asset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        mini.read_asset(tmp_path / "gone.safetensors")
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        mini.read_asset(pointer)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(mini.ASSET.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="damaged or cut off"):
        mini.read_asset(cut)


def test_the_asset_is_small_enough():
    assert mini.ASSET.stat().st_size <= 40e6


@pytest.mark.comfy
def test_the_mini_model_is_sdxl_and_samples():
    from comfy import model_base

    from graft.tools.mini import evaluate

    model, clip, vae = mini.load_mini()
    assert isinstance(model.model, model_base.SDXL)
    assert model.clone().model is model.model
    images = evaluate.sample(model, clip, vae, ["a red circle on a blue background"] * 2, steps=2)
    assert images.shape == (2, 64, 64, 3)
    assert torch.isfinite(images).all() and images.std() > 0.01


@pytest.mark.comfy
def test_the_autoencoder_keeps_drawings():
    _, _, vae = mini.load_mini()
    pictures = _draw(77, count=32).movedim(1, -1)
    latents = vae.encode(pictures)
    error = (vae.decode(latents) - pictures).square().mean()
    assert -10 * torch.log10(error) >= 25
    assert (latents * 0.13025).std((0, 2, 3)).sub(1).abs().max() < 0.25


@pytest.mark.comfy
def test_remembered_tokens_equal_the_tokenizer():
    from graft.tools.mini import text

    tokens = text.WordTokens()
    for prompt in (
        "a small red circle on a blue background",
        "ring, yellow, plain white",
        "",
        "dax",
    ):
        wanted = tokens.tokenizer.tokenize_with_weights(prompt)
        rows = tokens.rows(prompt, random.Random(0))
        assert rows[0] == [token for token, _ in wanted["l"][0]]
        assert rows[1] == [token for token, _ in wanted["g"][0]]


@pytest.mark.comfy
def test_the_stock_loader_reads_the_asset_with_the_plugin():
    import comfy.sd
    from comfy import supported_models

    from tests.host import mini_checkpoint

    try:
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(mini.ASSET), embedding_directory=[]
        )
    finally:
        supported_models.models[:] = [
            entry for entry in supported_models.models if entry.__name__ != "GraftMini"
        ]
    assert mini_checkpoint.NODE_CLASS_MAPPINGS == {}
    other, other_clip, _ = mini.load_mini()
    prompt = clip.encode("a red star")
    assert torch.equal(prompt, other_clip.encode("a red star"))
    weights, wanted = model.model.state_dict(), other.model.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in weights)
    assert vae.latent_channels == 4


@pytest.mark.comfy
def test_pretraining_can_go_on_from_the_shipped_weights():
    from graft.tools.mini import pretrain_unet, text

    tokens = text.WordTokens()
    trainee = pretrain_unet.Trainee(tokens, torch.device("cpu"), seed=0)
    trainee.load_asset(mini.read_asset())
    rows = tokens.rows("a small red circle, striped blue background", random.Random(0))
    with torch.no_grad():
        context, pooled = trainee.text(torch.tensor([rows[0]]), torch.tensor([rows[1]]))
    _, clip, _ = mini.load_mini()
    wanted, wanted_pooled = clip.encode_from_tokens(
        clip.tokenize("a small red circle, striped blue background"), return_pooled=True
    )
    assert torch.allclose(context, wanted, atol=1e-4)
    assert torch.allclose(pooled, wanted_pooled, atol=1e-4)
    rates = pretrain_unet.balance(trainee.sigmas)
    assert rates.max() == pretrain_unet.STRONGEST and rates.min() < 0.01
