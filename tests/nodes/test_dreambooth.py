# SPDX-License-Identifier: Apache-2.0
"""Train DreamBooth: what it asks for, class images, the prior's loss, and a checkpoint that ComfyUI loads."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.comfy


def held():
    return SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={})


def call(node, wires, **changes):
    """Call a node with its defaults and some changes, as the host does."""
    values = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
    with torch.inference_mode():
        return type(node.__name__, (node,), {"hidden": held()}).execute(**wires, **values | changes)


def pictures(count=3, caption="a zork", **more):
    from graft.trainers.data import Dataset, Item

    generator = torch.Generator().manual_seed(0)
    items = [
        Item((caption,), pixels=torch.rand(64, 64, 3, generator=generator)) for _ in range(count)
    ]
    return Dataset(tuple(items), resolution=64, **more)


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    from graft.host.data import class_images

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(class_images, "STEPS", 2)
    return tmp_path


@pytest.fixture(scope="module")
def mini(comfy):
    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        return dict(zip(("model", "clip", "vae"), load_mini(), strict=True))


@pytest.fixture
def asked(monkeypatch):
    from graft.nodes import engine
    from graft.nodes.dreambooth import TrainDreamBooth

    requests = []
    names = ("model", "clip", "lora_model", "state", "loss_map", "images", "adapter", "report")
    made = SimpleNamespace(**{name: name for name in names})

    def fake(request):
        requests.append(request)
        return made

    monkeypatch.setattr(engine.engine, "train", fake)
    wires = {"model": "m", "clip": "c", "vae": "v"}

    def ask(**changes):
        changes = wires | {"dataset": pictures(), "class_images": 0} | changes
        out = call(TrainDreamBooth, {}, **changes)
        return requests[-1], out.ui["text"][0]

    return ask


def rates(optimizer):
    parameters = {
        name: torch.nn.Parameter(torch.zeros(1)) for name in ("a.weight", "text_encoders.a.weight")
    }
    return {g["part"]: g["peak"] for g in optimizer.groups(parameters)}


def test_full_weights_are_asked_for_and_what_to_do_with_them_is_said(asked):
    request, report = asked()
    assert repr(request.network) == "Full(blocks='all')" and request.text_network is None
    assert rates(request.optimizer)["model"] == 5e-6 and request.objective.preserve == 0
    assert "All weights are in MODEL: wire it into Save Checkpoint" in report
    request, report = asked(train_text_encoder=True, text_learning_rate=1e-6, ema_decay=0.99)
    assert (
        repr(request.text_network) == "Full(blocks='all')" and "MODEL and CLIP: wire both" in report
    )
    assert rates(request.optimizer) == {"model": 5e-6, "text": 1e-6}
    assert request.optimizer.ema_decay == 0.99


def test_a_lora_has_its_rank_and_rate(asked):
    request, report = asked(network="LoRA", rank=4, train_text_encoder=True, blocks="attention")
    assert request.network.rank == request.text_network.rank == 4
    assert rates(request.optimizer) == {"model": 1e-4, "text": 1e-4} and "Save" not in report
    assert rates(asked(learning_rate=0.5)[0].optimizer)["model"] == 0.5


def test_class_images_are_given_drawn_kept_or_missed(asked, output, mini):
    request, _ = asked()
    assert request.dataset.classes is None
    assert "the class will drift" in request.dataset.warnings[-1]
    given = pictures(2, "a thing")
    request, _ = asked(class_dataset=given, prior_weight=0.3)
    assert len(request.dataset.classes) == 2 and request.dataset.class_weight == 0.3
    assert not request.dataset.warnings
    before = pictures(classes=given, class_weight=0.5)
    request, _ = asked(dataset=before, class_images=100)
    assert request.dataset.classes is given and request.dataset.class_weight == 1.0
    request, _ = asked(**mini, class_dataset=given, class_images=3, class_prompt="a red circle")
    assert len(request.dataset.classes) == 3
    assert len(list((output / "graft" / "class" / "class").glob("*.png"))) == 4
    with pytest.raises(ValueError, match="class_prompt is empty"):
        asked(**mini, class_images=2)


@pytest.fixture
def stock_loader(comfy, monkeypatch):
    """CheckpointLoaderSimple, as it is with the plugin that knows graft-mini, on a folder."""
    import folder_paths
    from comfy import supported_models

    from tests.host import mini_checkpoint

    before = list(supported_models.models)
    mini_checkpoint.register()
    from nodes import CheckpointLoaderSimple

    def load(path):
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, "checkpoints", ([str(path.parent)], {path.suffix})
        )
        folder_paths.filename_list_cache.clear()
        return CheckpointLoaderSimple().load_checkpoint(path.name)

    yield load
    supported_models.models[:] = before


def sampled(model, clip, prompt="a large red zork on a blue background"):
    from nodes import CLIPTextEncode, KSampler

    with torch.inference_mode():
        texts = [CLIPTextEncode().encode(clip, text)[0] for text in (prompt, "")]
        channels = model.model.latent_format.latent_channels
        latent = {"samples": torch.zeros(2, channels, *size_of(model))}
        made = KSampler().sample(model, 1, 4, 4.0, "euler", "normal", *texts, latent, 1.0)
        return made[0]["samples"].clone()


def size_of(model):
    ratio = 8 if model.model.latent_format.latent_channels == 4 else 4
    return 64 // ratio, 64 // ratio


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_save_checkpoint_keeps_all_that_was_trained(output, mini, stock_loader, ema_decay):
    from comfy_extras.nodes_model_merging import CheckpointSave

    from graft.nodes.dreambooth import TrainDreamBooth

    changes = {
        "dataset": pictures(caption="a large red zork"),
        "steps": 3,
        "train_text_encoder": True,
        "learning_rate": 1e-3,
        "class_images": 2,
        "class_prompt": "a red circle",
        "ema_decay": ema_decay,
        "precision": "fp32",
    }
    model, clip = call(TrainDreamBooth, mini, **changes).result[:2]
    with torch.inference_mode():
        CheckpointSave().save(model, clip, mini["vae"], "checkpoints/trained")
    (path,) = output.rglob("trained*.safetensors")
    other, other_clip, _ = stock_loader(path)
    ours, again, base = (
        sampled(*pair)
        for pair in ((model, clip), (other, other_clip), (mini["model"], mini["clip"]))
    )
    torch.testing.assert_close(again, ours, rtol=0, atol=0)
    with_old_text = sampled(model, mini["clip"])
    for different in (base, with_old_text):  # both halves have changed, and count
        assert float((ours - different).abs().max()) > 0.02
