# SPDX-License-Identifier: Apache-2.0
"""Folders of diffusers' pipelines: what is saved is what was there, diffusers loads it, and bad folders are refused."""

import json

import pytest
import safetensors.torch
import torch

from tests.host import ddpms

pytestmark = pytest.mark.comfy


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    bases, kinds = folder_paths.folder_names_and_paths["diffusers"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([*bases], kinds))
    return tmp_path


def saved(name="tiny", **changes):
    from graft.host.files import ddpm

    return ddpm.save(ddpms.model(**changes), name)[1]


def state(patcher):
    return patcher.model.diffusion_model.state_dict()


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("changes", [{}, {"classes": 0, "channels": 3}, {"unlabelled": False}])
def test_a_round_trip_is_exact_and_equal_models_share_a_folder(output, changes):
    from graft.host.files import ddpm

    first = ddpms.model(**changes)
    name, folder = ddpm.save(first, "tiny")
    again = ddpm.load(name)
    assert all(
        torch.equal(a, b) for a, b in zip(state(first).values(), state(again).values(), strict=True)
    )
    assert first.model.ddpm.unlabelled == again.model.ddpm.unlabelled
    assert ddpm.save(again, "tiny")[0] == "tiny"
    other = ddpm.save(ddpm.load(name), "other")[1]
    assert files(other) == files(folder)
    assert ddpm.save(ddpms.model(seed=1, **changes), "tiny")[0] == "tiny_00002"
    assert ddpm.names() == ["other", "tiny", "tiny_00002"]
    assert not list(folder.parent.glob(".graft*"))


def test_diffusers_loads_the_folder_and_computes_the_same(output):
    from diffusers import DDPMPipeline

    patcher = ddpms.model(classes=0)
    from graft.host.files import ddpm

    _, folder = ddpm.save(patcher, "tiny")
    pipeline = DDPMPipeline.from_pretrained(str(folder))
    assert pipeline.scheduler.config.beta_schedule == "linear"
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        theirs = pipeline.unet(x, t).sample
        ours = patcher.model.diffusion_model(x, t.float())
    torch.testing.assert_close(ours, theirs)
    pictures = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert pictures.shape == (2, 8, 8, 1)


def test_a_folder_that_diffusers_saved_is_loaded(output):
    from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

    from graft.host.files import ddpm

    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    folder = output / "diffusers" / "theirs"
    DDPMPipeline(unet, scheduler).save_pretrained(str(folder))
    made = ddpm.load("theirs")
    assert all(torch.equal(value, state(made)[name]) for name, value in unet.state_dict().items())
    assert made.model.model_sampling.sigma_max.item() == pytest.approx(20291, rel=1e-3)
    assert not made.model_options.get("sampler_post_cfg_function")
    # As diffusers before 0.18 called the parts of an attention.
    path = folder / "unet" / ddpm.WEIGHTS
    old = {
        name.replace(".to_q.", ".query.")
        .replace(".to_k.", ".key.")
        .replace(".to_v.", ".value.")
        .replace(".to_out.0.", ".proj_attn."): value
        for name, value in safetensors.torch.load_file(str(path)).items()
    }
    assert any(".proj_attn." in name for name in old)
    safetensors.torch.save_file(old, str(path))
    again = ddpm.load("theirs")
    assert all(
        torch.equal(a, b) for a, b in zip(state(made).values(), state(again).values(), strict=True)
    )


def test_patches_are_part_of_what_is_saved(output):
    """W + 0.5 * dW, by hand."""
    from graft.host.files import ddpm

    patcher = ddpms.model()
    key = "diffusion_model.conv_in.weight"
    change = torch.randn(8, 1, 3, 3)
    with torch.inference_mode():
        patched = patcher.clone()
        patched.add_patches({key: ("diff", (change,))}, 0.5)
        _, folder = ddpm.save(patched, "tiny")
    found = safetensors.torch.load_file(str(folder / "unet" / ddpm.WEIGHTS))
    torch.testing.assert_close(
        found["conv_in.weight"], state(patcher)["conv_in.weight"] + 0.5 * change
    )
    assert torch.equal(found["conv_out.weight"], state(patcher)["conv_out.weight"])


def test_a_full_disk_leaves_nothing_behind(output, monkeypatch):
    from graft.host.files import ddpm

    patcher = ddpms.model()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        ddpm.save(patcher, "tiny")
    assert not list((output / "diffusers").iterdir())


def rewrite(folder, name, **changes):
    path = folder / name
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        (
            "model_index.json",
            {"unet": ["diffusers", "UNet2DConditionModel"]},
            "is a DDPMPipeline; a",
        ),
        ("unet/config.json", {"block_out_channels": [8, 99999]}, "block_out_channels is"),
        ("unet/config.json", {"block_out_channels": [8, 32]}, "does not fit its config.json in"),
        (
            "unet/config.json",
            {"layers_per_block": 10**9},
            "layers_per_block is 1000000000; a whole",
        ),
        ("unet/config.json", {"out_channels": 2}, "takes 1 channels and makes 2"),
        ("unet/config.json", {"in_channels": "1"}, "in_channels is 1; a whole number"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is timestep"),
        (
            "unet/config.json",
            {"act_fm": "silu"},
            "Unknown setting of the network 'act_fm'. Did you",
        ),
        (
            "unet/config.json",
            {"down_block_types": ["DownBlock2D", "X"]},
            "diffusers cannot make this",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "Unknown prediction_type"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "cannot make this schedule"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e9}, "num_train_timesteps is"),
        ("scheduler/scheduler_config.json", {"beta_end": -1}, "does not grow with every step"),
        ("graft.json", {"unlabelled": 77}, "the class for no class is 77"),
    ],
)
def test_bad_settings_are_refused_by_name(output, name, changes, match):
    from graft.host.files import ddpm

    rewrite(saved(), name, **changes)
    with pytest.raises(ValueError, match=match):
        ddpm.load("tiny")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("", "no diffusers pipeline ''.*There are: tiny"),
        ("tyni", "There are: tiny"),
        ("../tiny", "no diffusers pipeline"),
        ("/etc", "no diffusers pipeline"),
        ("x/../../tiny", "no diffusers pipeline"),
    ],
)
def test_other_folders_are_refused_with_near_names(output, name, match):
    from graft.host.files import ddpm

    saved()
    with pytest.raises(ValueError, match=match):
        ddpm.load(name)


def test_damaged_folders_are_refused(output):
    from graft.host.files import ddpm

    folder = saved()
    weights = folder / "unet" / ddpm.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model|tensor|cut off"):
        ddpm.load("tiny")
    weights.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="Only safetensors are read"):
        ddpm.load("tiny")
    (folder / "unet" / "config.json").write_text("[" * 10000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json of 'tiny' cannot be read"):
        ddpm.load("tiny")


def test_names_that_lead_out_are_no_names(output):
    from graft.host.files import ddpm

    with pytest.raises(ValueError, match="name of the folder"):
        ddpm.save(ddpms.model(), "../x")
    from tests.host import tiny

    with pytest.raises(ValueError, match="is no pixel diffusion model"):
        ddpm.save(tiny.model("sd15"), "x")
