# SPDX-License-Identifier: Apache-2.0
"""Previews sample as the KSampler node does, and leave no trace in the run, whatever happens in them."""

import contextlib
import dataclasses
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.host import tiny

pytestmark = pytest.mark.comfy

LAYER = "middle_block.1.transformer_blocks.0.attn2.to_v"
RUN = "abcdefabcdefabcd"


@pytest.fixture(autouse=True)
def clean(comfy):
    yield
    shutil.rmtree(comfy / "output" / "graft" / RUN, ignore_errors=True)


@pytest.fixture(scope="module")
def world():
    """A MODEL with a LoRA on the wire, a CLIP and a VAE."""
    from tests.host import inprocess

    inprocess.start()
    from graft.host.files import result

    model = tiny.model("sdxl")
    generator = torch.Generator().manual_seed(0)
    name = f"diffusion_model.{LAYER}"
    weight = model.model.diffusion_model.get_submodule(LAYER).weight
    lora = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, weight.shape[1], generator=generator),
    }
    model = result.apply(model, lora)[0]
    return SimpleNamespace(model=model, clip=tiny.clip("sdxl"), vae=tiny.vae("sdxl"))


@pytest.fixture
def settings():
    from graft.trainers.preview import Preview

    return Preview(prompts=("a red square", "a dog"), negative="blurred", steps=2, cfg=3.0, seed=4)


@pytest.fixture
def prompts(world, settings):
    from graft.host.preview import sampled as preview

    with torch.inference_mode():
        return preview.encode_prompts(world.clip, settings)


@contextlib.contextmanager
def training(world):
    from graft.host.model.trainee import trainee

    with torch.inference_mode(), trainee(world.model, precision="fp32") as made:
        yield made


def attach(trainee, rank=2):
    from graft.adapters.attach import Attached
    from graft.adapters.lora import LoRA

    attached = Attached(trainee.diffusion_model, LoRA(rank=rank, blocks="attn2"), seed=0)
    with torch.no_grad():
        for layer in attached.layers.values():
            layer.up.normal_(generator=torch.Generator().manual_seed(1))
    return attached


def snapshot(trainee) -> dict:
    import comfy.model_management as mm

    model = trainee.model
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "devices": {k: v.device for k, v in model.named_parameters()},
        "grads": {k: v.requires_grad for k, v in model.named_parameters()},
        "inference": [k for k, v in model.named_parameters() if v.is_inference()],
        "forwards": {id(m): m.__dict__.get("forward") for m in model.modules()},
        "modes": [m.training for m in model.modules()],
        "in_training": getattr(mm, "in_training", None),
        "uuid": model.current_weight_patches_uuid,
        "is_loaded": any(x.model is trainee.patcher for x in mm.current_loaded_models),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "modes of autograd": (torch.is_inference_mode_enabled(), torch.is_grad_enabled()),
    }


def assert_equal(before: dict, after: dict) -> None:
    for key, value in before.items():
        if key == "weights":
            assert value.keys() == after[key].keys()
            changed = [k for k in value if not torch.equal(value[k], after[key][k])]
            assert not changed
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, after[key]), key
        else:
            assert value == after[key], key


def assert_trains(trainee, attached) -> None:
    """A step of training goes through, every adapter has a gradient."""
    text, extra = tiny.conditioning("sdxl")[0]
    loss = trainee.model.apply_model(
        tiny.latent("sdxl"),
        torch.ones(1),
        c_crossattn=text,
        y=torch.zeros(1, tiny.POOLED["sdxl"] + 6 * 256),
    )
    loss.float().square().mean().backward()
    for name, parameter in attached.parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        parameter.grad = None


def test_prompts_are_encoded_once_into_normal_tensors(world, settings, prompts):
    assert len(prompts.positive) == 2
    for conditioning in (*prompts.positive, prompts.negative):
        cond, extra = conditioning[0]
        assert not cond.is_inference()
        assert not extra["pooled_output"].is_inference()
        assert cond.device.type == "cpu"
    wanted = world.clip.encode_from_tokens_scheduled(world.clip.tokenize("a dog"))[0][0]
    assert torch.equal(prompts.positive[1][0][0], wanted.cpu())


def test_pictures_are_those_of_the_ksampler_and_a_vae_decode(world, settings, prompts):
    import comfy.sample

    from graft.host.preview import sampled as preview

    empty = torch.zeros(1, 4, 8, 6)
    wanted = []
    with torch.inference_mode():
        for i in range(2):
            noise = comfy.sample.prepare_noise(empty, 4 + i)
            conds = (prompts.positive[i], prompts.negative)
            latent = comfy.sample.sample(
                world.model,
                noise,
                2,
                3.0,
                "euler",
                "normal",
                *conds,
                empty,
                disable_pbar=True,
                seed=4 + i,
            )
            wanted.append(world.vae.decode(latent))
    with training(world) as trainee:
        images = preview.sample(trainee, prompts, settings, world.vae, size=(48, 64))
        again = preview.sample(trainee, prompts, settings, world.vae, size=(48, 64))
    assert images.shape == (2, 64, 48, 3)
    assert images.dtype == torch.float32
    assert images.device.type == "cpu"
    assert not images.is_inference()
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(images, again)
    assert torch.allclose(images, torch.cat(wanted).float().cpu(), atol=1e-5)
    assert images[0].std() > 0.01


@pytest.mark.parametrize(
    "texts", [("a red square", "a dog", "cat"), ("a dog", "a dog " * 90, "cat")]
)
def test_latents_that_are_sampled_together_are_those_of_one_at_a_time(world, settings, texts):
    """Each has the noise of its own seed; a text of another length is sampled apart."""
    from graft.host.preview import sampled as preview

    several = dataclasses.replace(settings, prompts=texts)
    with torch.inference_mode():
        prompts = preview.encode_prompts(world.clip, several)
    with training(world) as trainee:
        together = preview.sample_latents(trainee, prompts, several, world.vae, (64, 64))
        for i, latent in enumerate(together):
            one = preview.Prompts((prompts.positive[i],), prompts.negative)
            alone = dataclasses.replace(several, seed=several.seed + i)
            (expected,) = preview.sample_latents(trainee, one, alone, world.vae, (64, 64))
            torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.05)


def test_samplers_and_sigmas_of_the_wire_are_used(world, settings, prompts):
    import comfy.samplers

    from graft.host.preview import sampled as preview

    plain = SimpleNamespace(patcher=world.model, model=world.model.model)
    ms = world.model.get_model_object("model_sampling")
    same = comfy.samplers.calculate_sigmas(ms, "normal", 2)
    euler, other = (comfy.samplers.sampler_object(n) for n in ("euler", "dpmpp_2m"))

    def pictures(**wire):
        return preview.sample(plain, prompts, settings, world.vae, size=(64, 64), **wire)

    base = pictures()
    assert torch.equal(pictures(sampler=euler, sigmas=same), base)
    assert torch.equal(pictures(sampler=euler), base)
    assert torch.equal(pictures(sigmas=same), base)
    assert not torch.equal(
        pictures(sigmas=same[:1].repeat(3) * torch.tensor([1.0, 0.3, 0.0])), base
    )
    assert pictures(sampler=other).shape == base.shape


def test_attached_adapters_are_seen(world, settings, prompts):
    from graft.host.preview import sampled as preview

    with training(world) as trainee:
        base = preview.sample(trainee, prompts, settings, world.vae, size=(64, 64))
        attached = attach(trainee)
        try:
            adapted = preview.sample(trainee, prompts, settings, world.vae, size=(64, 64))
            with attached.off():
                off = preview.sample(trainee, prompts, settings, world.vae, size=(64, 64))
        finally:
            attached.remove()
    assert torch.equal(base, off)
    assert (adapted - base).abs().max() > 1e-3


class Evicting:
    """A VAE whose decoding pushes everything off the device, and draws and patches meanwhile."""

    def __init__(self, vae, trainee=None, error=None):
        self.vae, self.trainee, self.error = vae, trainee, error

    def spacial_compression_encode(self):
        return self.vae.spacial_compression_encode()

    def decode(self, latent):
        import comfy.model_management as mm

        mm.unload_all_models()
        if hasattr(mm, "in_training"):
            mm.in_training = False
        torch.manual_seed(random.randrange(2**31))
        np.random.rand(3)  # noqa: NPY002
        if self.trainee is not None:
            module = self.trainee.diffusion_model.get_submodule(LAYER)
            module.__dict__.pop("forward", None)
            self.trainee.diffusion_model.middle_block.train()
        if self.error is not None:
            raise self.error
        return self.vae.decode(latent)


@pytest.mark.parametrize("vae", ["plain", "evicting", "failing"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_left_behind_and_training_goes_on(world, settings, prompts, vae, checkpointing):
    from graft.host.preview import sampled as preview

    with training(world) as trainee:
        trainee.checkpointing(checkpointing)
        attached = attach(trainee)
        try:
            error = RuntimeError("no picture") if vae == "failing" else None
            used = world.vae if vae == "plain" else Evicting(world.vae, trainee, error)
            before = snapshot(trainee)
            with (
                pytest.raises(RuntimeError, match="no picture")
                if error
                else contextlib.nullcontext()
            ):
                preview.sample(trainee, prompts, settings, used, size=(64, 64))
            assert_equal(before, snapshot(trainee))
            assert before["is_loaded"]
            assert before["inference"] == []
            assert_trains(trainee, attached)
        finally:
            attached.remove()


def test_a_plain_patcher_is_given_back_loaded(world, settings, prompts):
    import comfy.model_management as mm

    from graft.host.preview import sampled as preview

    mm.load_models_gpu([world.model], force_full_load=True)
    plain = SimpleNamespace(patcher=world.model, model=world.model.model)
    before = snapshot(plain)
    preview.sample(plain, prompts, settings, Evicting(world.vae), size=(64, 64))
    after = snapshot(plain)
    before.pop("inference"), after.pop("inference")
    assert_equal(before, after)


def test_cancel_comes_through_and_leaves_no_trace(world, settings, prompts):
    import comfy.model_management as mm

    from graft.host.preview import sampled as preview

    with training(world) as trainee:
        attached = attach(trainee)
        try:
            before = snapshot(trainee)
            mm.interrupt_current_processing(True)
            with pytest.raises(mm.InterruptProcessingException):
                preview.sample(trainee, prompts, settings, world.vae, size=(64, 64))
            assert not mm.processing_interrupted()
            assert_equal(before, snapshot(trainee))
            assert_trains(trainee, attached)
        finally:
            mm.interrupt_current_processing(False)
            attached.remove()


def test_cancel_in_the_middle_of_sampling(world, settings, prompts):
    import comfy.model_management as mm
    import comfy.samplers

    from graft.host.preview import sampled as preview

    def cancel(model, x, sigmas, extra_args=None, callback=None, disable=None):
        model(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args)
        mm.interrupt_current_processing(True)
        return model(x, sigmas[1] * x.new_ones([x.shape[0]]), **extra_args)

    with training(world) as trainee:
        before = snapshot(trainee)
        try:
            with pytest.raises(mm.InterruptProcessingException):
                sampler = comfy.samplers.KSAMPLER(cancel)
                preview.sample(
                    trainee, prompts, settings, world.vae, size=(64, 64), sampler=sampler
                )
        finally:
            mm.interrupt_current_processing(False)
        assert_equal(before, snapshot(trainee))


def test_failing_to_load_again_ends_the_training_but_hides_no_interrupt(world, settings, prompts):
    from comfy.model_management import InterruptProcessingException

    from graft.host.preview import sampled as preview

    def broken():
        raise RuntimeError("cannot load")

    plain = SimpleNamespace(patcher=world.model, model=world.model.model, reload=broken)
    with pytest.raises(InterruptProcessingException):
        stop = Evicting(world.vae, error=InterruptProcessingException())
        preview.sample(plain, prompts, settings, stop)
    with pytest.raises(preview.TraineeLost, match="cannot load"):
        preview.sample(plain, prompts, settings, Evicting(world.vae, error=KeyError("first")))
    with pytest.raises(preview.TraineeLost, match="cannot load"):
        preview.sample(plain, prompts, settings, world.vae, size=(64, 64))


@pytest.mark.parametrize(("field", "value"), [("sampler", "eular"), ("scheduler", "karas")])
def test_an_unknown_name_is_refused_with_near_ones(settings, field, value):
    import dataclasses

    from graft.host.preview import sampled as preview

    near = {"sampler": "euler", "scheduler": "karras"}[field]
    with pytest.raises(ValueError, match=f"Unknown {field} '{value}'. Did you mean .*{near}"):
        preview.check(dataclasses.replace(settings, **{field: value}))


@pytest.mark.parametrize("family", ["sd15", "sd3", "flux"])
def test_other_families_are_sampled(family, settings):
    import dataclasses

    from graft.host.preview import sampled as preview

    model = tiny.model(family)
    plain = SimpleNamespace(patcher=model, model=model.model)
    encoded = preview.Prompts((tiny.conditioning(family),), tiny.conditioning(family, seed=6))
    used = dataclasses.replace(settings, prompts=("a",), width=64, height=32, scheduler="simple")
    images = preview.sample(plain, encoded, used, tiny.vae(family))
    assert images.shape == (1, 32, 64, 3)
    assert torch.isfinite(images).all()


def test_samples_are_png_files_that_the_browser_finds(comfy):
    from PIL import Image

    from graft.host.preview import sampled as preview

    images = torch.rand(2, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    refs = preview.save_samples(images, RUN, 500)
    folder = comfy / "output" / "graft" / RUN / "samples"
    assert [r["filename"] for r in refs] == ["step_000500_0.png", "step_000500_1.png"]
    assert {(r["subfolder"], r["type"]) for r in refs} == {(f"graft/{RUN}/samples", "output")}
    for i in range(2):
        with Image.open(folder / refs[i]["filename"]) as picture:
            found = torch.from_numpy(np.array(picture)).float() / 255
        assert (found - images[i]).abs().max() <= 0.5 / 255 + 1e-6
    assert preview.save_samples(images, RUN, 500) == refs
    assert len(list(folder.iterdir())) == 2
