# SPDX-License-Identifier: Apache-2.0
"""Runs whose data vary: the cache and the cut of the batch change nothing, and priors do what they say."""

import dataclasses

import pytest
import torch

from tests.host.options import class_pictures, same, varied

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def wires():
    from tests.host import tiny

    with torch.inference_mode():
        return tiny.model("sdxl"), tiny.clip("sdxl"), tiny.kl_vae()


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def train(wires, dataset, steps=3, plan=(4, 1), sink=None, **objective):
    from graft.adapters.lora import LoRA
    from graft.host import engine
    from graft.trainers.objectives import Objective
    from graft.trainers.plan import Plan

    model, clip, vae = wires
    settings = Objective(**{"preserve": 0.0, **objective})
    made = Plan(steps=steps, batch_size=plan[0], accumulate=plan[1])
    request = engine.Request(
        model,
        dataset,
        vae,
        clip,
        network=LoRA(rank=2, blocks="attention"),
        plan=made,
        objective=settings,
    )
    with torch.inference_mode(False):
        run = engine._Run(request)
        said = []
        real = run.sink
        run.sink = lambda event: said.append(event) or real(event)
        run.sink.stage = real.stage
    with torch.inference_mode(False):
        return run.go(), [event.text for event in said if type(event).__name__ == "Warned"]


def test_a_cache_changes_nothing_and_a_second_run_encodes_nothing(wires, output, monkeypatch):
    from graft.host.data import autoencoder
    from graft.host.text import conditioning, texts
    from graft.trainers.data.tensor_files import TensorFiles

    counts = {"pictures": 0, "texts": 0}
    posterior, encode_text = autoencoder.posterior, conditioning.encode_text

    def count_pictures(*args):
        counts["pictures"] += 1
        return posterior(*args)

    def count_texts(*args):
        counts["texts"] += 1
        return encode_text(*args)

    monkeypatch.setattr(autoencoder, "posterior", count_pictures)
    monkeypatch.setattr(texts, "encode_text", count_texts)
    first, said = train(wires, varied())
    assert counts["pictures"] == 4 * 4 and counts["texts"] > 4 and not said
    done = dict(counts)
    second, _ = train(wires, varied())
    assert counts == done and same(first, second)

    def full(*args):
        raise OSError(30, "Read-only file system")

    for path in (output / "graft" / "cache").rglob("*.tensors"):
        path.unlink()
    monkeypatch.setattr(TensorFiles, "write", full)
    third, said = train(wires, varied())
    assert same(first, third) and counts["pictures"] == 2 * done["pictures"]
    assert len(said) == 2 and all(
        "Read-only file system" in text for text in said
    )  # latents, texts


def test_a_broken_file_is_a_warning_of_the_run(wires, output):
    first, _ = train(wires, varied())
    for path in list((output / "graft" / "cache" / "latents").rglob("*.tensors"))[:1]:
        data = bytearray(path.read_bytes())
        data[-1] ^= 255  # the header is whole, so it is found when it is used
        path.write_bytes(data)
        cut = next(p for p in path.parent.parent.rglob("*.tensors") if p != path)
        cut.write_bytes(cut.read_bytes()[:50])
    second, said = train(wires, varied(), steps=12)
    assert {path.stem for path in (path, cut)} == {
        stem for text in said for stem in (path.stem, cut.stem) if stem in text
    }
    again, said = train(wires, varied(), steps=12)
    assert not said and same(second, again)
    assert second.loss_map["loss"][:3] == first.loss_map["loss"]


@pytest.mark.parametrize(
    "objective",
    [{}, {"preserve": 0.7, "preserve_on": "instances", "class_word": "dog"}],
    ids=["plain", "instances"],
)
def test_every_cut_of_the_batch_trains_the_same(wires, output, objective):
    dataset = varied(classes=class_pictures(), class_weight=0.5)
    whole, _ = train(wires, dataset, plan=(4, 1), **objective)
    for plan in ((2, 2), (1, 4)):
        cut, _ = train(wires, dataset, plan=plan, **objective)
        assert cut.loss_map["loss"] == pytest.approx(whole.loss_map["loss"], rel=1e-5)
        for key, value in whole.lora_model.items():
            # Adam divides by the gradient's own size: where that is nearly 0, rounding is a share of the step.
            torch.testing.assert_close(cut.lora_model[key], value, rtol=2e-3, atol=1e-5)


def test_class_images_add_their_plain_loss_times_their_weight(wires, output):
    from graft.trainers.objectives import WEIGHTS

    weight = WEIGHTS.get("min-snr")()
    losses = {}
    for factor in (0.0, 1.0, 2.0):
        dataset = varied(classes=class_pictures(), class_weight=factor)
        made, _ = train(wires, dataset, steps=1, weight=weight)
        losses[factor] = made.loss_map["loss"][0]
    added = losses[1.0] - losses[0.0]
    assert added > 0.1
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * added, rel=1e-5)
    plain = [
        train(wires, varied(classes=class_pictures(), class_weight=w), steps=1)[0].loss_map["loss"][
            0
        ]
        for w in (0.0, 1.0)
    ]
    assert plain[1] - plain[0] == pytest.approx(added, rel=1e-5)  # Min-SNR is the pictures' only
    assert plain[0] != pytest.approx(losses[0.0], rel=1e-3)


def test_preserving_on_instances_is_nothing_at_the_start_and_holds_later(
    wires, output, monkeypatch
):
    """dW = 0 before the first step, so the base and the trainee agree; a large weight keeps dW small."""
    from graft.host.preview import sampled as preview

    monkeypatch.setattr(preview, "sample_latents", None)  # nothing is drawn
    free, _ = train(wires, varied(), steps=4)
    kept, _ = train(wires, varied(), steps=4, preserve=1.0, preserve_on="instances")
    held, _ = train(wires, varied(), steps=4, preserve=50.0, preserve_on="instances")
    assert [len(levels) for levels in kept.loss_map["sigma"]] == [4] * 4  # the pictures' alone
    assert kept.loss_map["loss"][0] == pytest.approx(free.loss_map["loss"][0], rel=1e-6)
    assert kept.loss_map["loss"][1:] != free.loss_map["loss"][1:]
    assert any(not torch.equal(v, kept.lora_model[k]) for k, v in free.lora_model.items())
    assert held.loss_map["loss"][0] == pytest.approx(free.loss_map["loss"][0], rel=1e-6)


def test_pictures_to_stay_close_to_are_drawn_once(wires, output, monkeypatch):
    from graft.host.preview import sampled as preview

    drawn, real = [], preview.sample_latents

    def count(*args):
        drawn.append(1)
        return real(*args)

    monkeypatch.setattr(preview, "sample_latents", count)
    prompts = {"preserve": 0.5, "preserve_prompts": ("a dog",)}
    first, _ = train(wires, varied(), **prompts)
    again, _ = train(wires, varied(), **prompts)
    assert len(drawn) == 1 and same(first, again)
    train(wires, varied(), preserve=0.5, preserve_prompts=("a cat",))
    assert len(drawn) == 2
    more = dataclasses.replace(varied(), items=varied().items[:3])
    train(wires, more, plan=(2, 1), **prompts)
    assert len(drawn) == 2  # they do not depend on the pictures


def test_a_prompt_to_preserve_is_no_caption_of_the_training(wires, output):
    """A prior that is a caption too would pull against what is learned; with caption dropout the empty text is one."""
    from graft.host.data.priors import prior_prompts

    dataset = varied()
    caption = dataset.texts(0)[0]
    assert "" in dataset.texts(0)
    assert prior_prompts(dataset, ("a dog", caption)) == ("a dog",)
    _, said = train(wires, dataset, steps=1, preserve=0.5, preserve_prompts=("a dog", caption))
    assert any(caption in text and "preserve" in text for text in said)


@pytest.mark.parametrize("trigger", ["", "wumpus"])
def test_preserving_on_instances_needs_a_trigger(wires, output, trigger):
    dataset = dataclasses.replace(varied(), trigger=trigger)
    with pytest.raises(ValueError, match="preserve_on is instances.*name the trigger"):
        train(wires, dataset, preserve=1.0, preserve_on="instances")
    assert not list(output.rglob("*.*"))


def test_the_text_without_the_concept():
    from graft.host.data.priors import BaseText
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective

    pixels = torch.zeros(64, 64, 3)
    captions = ["a sks dog", "a man asks", "sks, a cat", "a  big sks", "a big"]
    dataset = Dataset(tuple(Item((text,), pixels=pixels) for text in captions), trigger="sks")
    bare = BaseText(dataset, Objective())
    assert [bare(text) for text in captions] == ["a dog", None, ", a cat", None, None]
    named = BaseText(dataset, Objective(class_word=r"\1 wolf"))
    assert named("a sks dog") == r"a \1 wolf dog" and named("a  big sks") == r"a big \1 wolf"


def test_the_concept_is_taken_out_whatever_its_case_and_neighbours():
    from graft.host.data.priors import BaseText, prior_prompts
    from graft.trainers.data import Dataset, Item
    from graft.trainers.objectives import Objective

    captions = ["一只zork狗在草地上", "A Zork runs", "zorks"]
    items = tuple(Item((text,), pixels=torch.zeros(64, 64, 3)) for text in captions)
    dataset = Dataset(items, trigger="zork")
    text = BaseText(dataset, Objective(class_word="dog"))
    assert [text(one) for one in captions] == ["一只dog狗在草地上", "A dog runs", None]
    assert prior_prompts(dataset, ()) == ("一只 狗在草地上", "A runs", "")


def test_the_concept_may_have_brackets():
    from graft.host.data.priors import BaseText
    from graft.trainers.data import Captioning, Dataset, Item
    from graft.trainers.objectives import Objective

    items = tuple(
        Item((text,), pixels=torch.zeros(64, 64, 3)) for text in ("saber (fate), red (x)", "a (x)")
    )
    plain = Dataset(items, trigger="saber (fate)")
    assert BaseText(plain, Objective(class_word="a knight"))(r"saber \(fate\), red \(x\)") == (
        r"a knight, red \(x\)"
    )
    weighted = Dataset(items, trigger="saber (fate)", captioning=Captioning(weighted=True))
    assert BaseText(weighted, Objective())("saber (fate), red (x)") == ", red (x)"


def test_repeats_count_and_what_is_hardly_meant_is_said(wires, output):
    """One picture ten times fills a batch of 2; beside others a lone shape counts as often as a step has pictures."""
    from graft.trainers.data import Dataset, Framing, Item

    one = Item(("a",), pixels=torch.rand(64, 64, 3), repeats=10)
    made, said = train(wires, Dataset((one,), resolution=64), steps=1, plan=(2, 1))
    assert len(made.loss_map["loss"]) == 1 and not said
    with pytest.raises(ValueError, match="batch_size is 11 but the dataset has 10 pictures, rep"):
        train(wires, Dataset((one,), resolution=64), plan=(11, 1))
    lone = Item(("b",), pixels=torch.rand(32, 96, 3))
    dataset = Dataset((one, lone), resolution=64, framing=Framing(crop="random"))
    _, said = train(wires, dataset, steps=1, plan=(2, 2))
    assert len(said) == 2 and "a step of 4: image 2 4 times" in said[0]
    assert "one random crop, the same in the whole run" in said[1]


def test_weights_that_are_all_zero_are_refused(wires, output):
    items = tuple(dataclasses.replace(item, weight=0.0) for item in varied().items)
    with pytest.raises(ValueError, match="All pictures of the dataset have weight 0.*Join Datas"):
        train(wires, dataclasses.replace(varied(), items=items))
    assert not list(output.rglob("*.*"))
