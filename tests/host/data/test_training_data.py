# SPDX-License-Identifier: Apache-2.0
"""What a step trains on: views and texts by keyed draws, masks, weights and repeats, and what keeps the model."""

from collections import Counter

import pytest
import torch

from graft.host.data.training_data import Held, Picture, Prior, TrainingData, View
from graft.host.text.conditioning import Conditioner
from graft.trainers.random import Draws
from tests.host import tiny

pytestmark = pytest.mark.comfy


class Pictures:
    """A source whose choices can be seen: view k of picture i is the number 10 i + k."""

    def __init__(self, shapes=((4, 8, 8),) * 3, views=2, texts=("a", "b"), **more):
        self.shapes, self.order = shapes, more.get("order", range(len(shapes)))
        self.views, self.texts = views, texts
        self.spread, self.masks = more.get("spread"), more.get("masks", {})
        self.weights = more.get("weights", {})

    def view(self, index, u):
        number = 10 * index + int(u * self.views)
        shape = self.shapes[index]
        spread = None if self.spread is None else torch.full(shape, self.spread)
        size = (8 * shape[-1], 8 * shape[-2])
        latents = torch.full(shape, float(number))
        return View(latents, size, size[::-1], (number, 0), spread, self.masks.get(index))

    def text(self, index, u):
        return self.texts[int(u * len(self.texts))]

    def weight(self, index):
        return self.weights.get(index, 1.0)


class Inputs:
    """Conditions that are the texts and the sizes."""

    def per_item(self, encoded, **sizes):
        return Input((encoded, sizes["crop"]))

    def batch(self, items):
        return [item.said for item in items]


class Input:
    bytes = 100

    def __init__(self, said):
        self.said = said


class Texts(dict):
    def __missing__(self, text):
        return f"<{text}>"


def data(pictures, *priors):
    return TrainingData(pictures, priors, Texts(), Inputs(), torch.device("cpu"))


def draws(step=0, slots=range(4), batch=4):
    return Draws(0, step, slots, batch)


def test_every_step_draws_a_view_and_a_text():
    source = data(Pictures())
    seen = Counter()
    for step in range(400):
        (batch,) = source.batches([1], draws(step, [0], 1))
        ((text, crop),) = batch.cond
        assert (
            float(batch.latents[0, 0, 0, 0]) == crop[0]
        )  # the size conditioning is of this very view
        assert batch.weight == 1.0 and batch.mask is None
        seen[crop[0], text] += 1
    assert set(seen) == {(k, t) for k in (10, 11) for t in ("<a>", "<b>")}
    assert all(
        60 <= count <= 140 for count in seen.values()
    )  # 100 each, with a standard deviation of 8.7


def test_the_choices_do_not_depend_on_the_cut_of_the_batch():
    source = data(
        Pictures(spread=0.5), Prior(1.0, classes=Pictures(shapes=((4, 8, 8), (4, 4, 8)) * 3))
    )
    items = [0, 2, 1, 0]
    for step in range(20):
        whole = list(source.batches(items, draws(step)))
        for cut in (1, 2):
            parts = [
                list(source.batches(items[i : i + cut], draws(step, range(i, i + cut))))
                for i in range(0, 4, cut)
            ]
            for number, batch in enumerate(whole):
                latents = torch.cat([part[number].latents for part in parts])
                assert torch.equal(latents, batch.latents)
                assert [c for part in parts for c in part[number].cond] == batch.cond


def test_latents_are_drawn_from_their_distribution():
    """y ~ N(mean, spread^2): means within 5 standard errors, variances within 5 of theirs, sqrt(2 / n)."""
    source = data(Pictures(shapes=((4, 16, 16),), views=1, spread=0.5))
    drawn = torch.cat(
        [next(source.batches([0], draws(step, [0], 1))).latents for step in range(40)]
    )
    count = drawn.numel()
    assert abs(drawn.mean()) < 5 * 0.5 / count**0.5
    assert abs(drawn.var() / 0.25 - 1) < 5 * (2 / count) ** 0.5
    again = next(source.batches([0], draws(3, [0], 1))).latents
    assert torch.equal(again, drawn[3:4]) and not torch.equal(drawn[2:3], drawn[3:4])
    noise = draws(3, [0], 1).normal((4, 16, 16))
    assert abs(float((again / 0.5 * noise).mean())) < 0.2  # they are not the numbers of the noise


def test_a_vae_with_a_distribution_gives_its_moments_over_many_draws(tmp_path):
    from graft.host.data.picture_index import Digests
    from graft.host.data.pictures import EncodedPictures
    from graft.trainers.data import Dataset, Item
    from graft.trainers.data.cache import Cache

    vae, model = tiny.kl_vae(), tiny.model("sdxl")
    pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    network = vae.first_stage_model
    with torch.inference_mode():
        both = network.quant_conv(network.encoder(pixels[None].movedim(-1, 1) * 2 - 1))
        mean, logvar = both.chunk(2, dim=1)
    item = Item(("a",), pixels=pixels)
    made = EncodedPictures(Dataset((item,), resolution=64), vae, model, Cache(tmp_path), Digests())
    made.prepare(lambda total: lambda: None)
    source = data(made)
    drawn = torch.cat([next(source.batches([0], draws(s, [0], 1))).latents for s in range(400)])
    drawn = drawn / 0.13025
    std = torch.exp(0.5 * logvar)
    assert float(((drawn.mean(0, True) - mean) / std).abs().max()) < 5 / 400**0.5
    ratio = drawn.var(0) / torch.exp(logvar)[0]
    assert abs(float(ratio.mean()) - 1) < 5 * (2 / (400 * ratio.numel())) ** 0.5


def test_repeats_weights_and_masks_of_the_pictures():
    mask = torch.rand(1, 8, 8)
    source = data(Pictures(order=(0, 1, 1, 2), weights={1: 0.25}, masks={2: mask}))
    assert len(source.buckets) == 4
    (batch,) = source.batches([0, 2, 3], draws(slots=range(3), batch=3))
    assert torch.equal(batch.weight, torch.tensor([1.0, 0.25, 1.0]))
    assert batch.mask.shape == (3, 1, 8, 8)
    assert torch.equal(batch.mask, torch.stack([torch.ones(1, 8, 8), torch.ones(1, 8, 8), mask]))
    video = data(Pictures(shapes=((16, 1, 8, 8),) * 3, masks={0: mask}))
    assert next(video.batches([0], draws(slots=[0]))).mask.shape == (1, 1, 1, 8, 8)


def test_class_images_come_each_once_an_epoch_and_in_one_shape_a_step():
    classes = Pictures(
        shapes=((4, 8, 8), (4, 4, 8), (4, 8, 8), (4, 4, 8)), views=1, weights={3: 0.5}
    )
    source = data(Pictures(), Prior(2.0, classes=classes))
    seen = Counter()
    for step in range(4):
        plain, prior = source.batches([0, 1], draws(step, range(2), 2))
        assert not plain.plain and prior.plain and not prior.keeps_base and prior.use == "class"
        pictures = [int(value) // 10 for value in prior.latents[:, 0, 0, 0]]
        seen.update(pictures)
        expected = [2.0 * classes.weight(i) for i in pictures]
        assert torch.as_tensor(prior.weight).expand(2).tolist() == expected
    assert seen == {0: 2, 1: 2, 2: 2, 3: 2}


def test_the_base_on_the_pictures_own_latents():
    base = {"a": "A"}.get
    source = data(Pictures(), Prior(0.5, base_text=base))
    seen = 0
    for step in range(30):
        batch, *rest = source.batches([0, 1], draws(step, range(2), 2))
        texts = [text for text, _ in batch.cond]
        if not rest:
            assert texts == ["<b>", "<b>"]
            continue
        (prior,) = rest
        seen += 1
        assert prior.latents is batch.latents and prior.use == batch.use and prior.keeps_base
        assert prior.weight.tolist() == [0.5 if text == "<a>" else 0.0 for text in texts]
        assert [text for text, _ in prior.cond] == ["<A>" if t == "<a>" else "<>" for t in texts]
    assert seen > 10


def test_model_inputs_are_kept_by_bytes(monkeypatch):
    from graft.host.data import training_data

    monkeypatch.setattr(training_data, "INPUT_BYTES", 250)
    source = data(Pictures())
    for step in range(20):
        list(source.batches([0, 1, 2], draws(step, range(3))))
        assert source._inputs.bytes <= 250 and len(source._inputs) <= 2


def test_sdxl_is_told_the_sizes_of_each_sample():
    """Height, width, top, left, target height and width, each as 256 sines: diffusers' add_time_ids."""
    from graft.trainers.data import Dataset, Framing, Item

    model = tiny.model("sdxl")
    pixels = torch.rand(96, 72, 3, generator=torch.Generator().manual_seed(0))
    shown = Dataset(
        (Item(("a",), pixels=pixels),), resolution=64, framing=Framing(flip=True), crops=2
    )
    fitted = shown.view(0, 3)
    view = View(torch.zeros(4, 8, 8), shown.size(0), fitted.original, fitted.crop)
    conditioner = Conditioner(model, "cpu")
    clip = tiny.clip("sdxl")
    from graft.host.text.conditioning import encode_text

    source = TrainingData(
        Held([(Picture(view.latents[None], view.size, view.original, (view.crop,)), "a")]),
        (),
        {"a": encode_text(clip, "a")},
        conditioner,
        torch.device("cpu"),
    )
    (batch,) = source.batches([0], draws(slots=[0]))
    ((_, inputs),) = batch.cond.groups
    numbers = [96, 72, *fitted.crop, view.size[1], view.size[0]]
    half = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    waves = [torch.cat([torch.cos(n * half), torch.sin(n * half)]) for n in numbers]
    torch.testing.assert_close(inputs["y"][0, -6 * 256 :], torch.cat(waves), rtol=1e-4, atol=1e-4)
    assert fitted.crop != (0, 0) or fitted.original != (96, 72)
