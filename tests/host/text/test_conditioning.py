# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from graft.host.model.trainee import trainee
from graft.host.text.conditioning import (
    Conditioner,
    Encoded,
    encode_text,
    encode_texts,
    family_check,
    literal,
)
from tests.host import tiny

pytestmark = pytest.mark.comfy


class Once:
    """A sampler that calls the host's guider once and keeps what it denoised."""

    def sample(self, guider, sigmas, extra_args, callback, noise, *args):
        self.denoised = guider(noise, sigmas[:1].expand(noise.shape[0]), **extra_args)
        return noise


def by_the_host(patcher, conditioning, x, sigma):
    """D through `CFGGuider` with cfg 1: the whole path of ComfyUI's sampling nodes."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    once = Once()
    once.max_denoise = lambda *args: False
    guider.sample(
        x, torch.zeros_like(x), once, torch.tensor([sigma, 0.0]), seed=0, disable_pbar=True
    )
    return once.denoised


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_denoised_equals_that_of_the_hosts_sampler(family):
    sizes = {
        "width": 90,
        "height": 70,
        "crop_w": 5,
        "crop_h": 3,
        "target_width": 64,
        "target_height": 64,
    }
    for tokens in (7, 20):
        conditioning = tiny.conditioning(family, tokens=tokens)
        sized = [[conditioning[0][0], conditioning[0][1] | sizes]]
        x = 2 * tiny.latent(family)
        with trainee(tiny.model(family), precision="fp32") as t, torch.no_grad():
            maker = Conditioner(t.model, t.device)
            item = maker.per_item(
                Encoded.from_conditioning(conditioning),
                width=64,
                height=64,
                original=(70, 90),
                crop=(3, 5),
            )
            t.denoiser._options.pop("optimized_attention_override")
            ours = t.denoiser(x, torch.tensor([0.5]), maker.batch([item]))
            theirs = by_the_host(t.patcher, sized, x, 0.5)
        assert torch.equal(ours, theirs)


def test_sizes_reach_the_model_where_sdxl_expects_them():
    """Against the layout of SDXL's vector: pooled, then height, width, top, left, target height, target width."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    encoded = Encoded.from_conditioning(tiny.conditioning("sdxl"))
    item = Conditioner(tiny.model("sdxl"), "cpu").per_item(
        encoded, width=64, height=128, original=(700, 900), crop=(30, 50)
    )
    y = item.conds["y"].cond
    expected = Timestep(256)(torch.tensor([700.0, 900.0, 30.0, 50.0, 128.0, 64.0])).flatten()
    assert torch.equal(y[0, :64], encoded.extras["pooled_output"][0])
    torch.testing.assert_close(y[0, 64:], expected)
    assert y.dtype == torch.float32 and not y.is_inference() and not y.requires_grad


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_texts_of_different_lengths_batch_as_in_the_host(family):
    """A UNet repeats the shorter text; a DiT, where that would change the result, runs them apart."""
    texts = [
        Encoded.from_conditioning(tiny.conditioning(family, tokens=n, seed=n)) for n in (6, 12, 6)
    ]
    x, sigma = tiny.latent(family, batch=3), torch.tensor([0.3, 0.5, 0.7])
    with trainee(tiny.model(family), precision="fp32") as t, torch.no_grad():
        maker = Conditioner(t.model, t.device)
        items = [maker.per_item(e, width=64, height=64) for e in texts]
        batch = maker.batch(items)
        assert [indices for indices, _ in batch.groups] == (
            [(0, 1, 2)] if family == "sdxl" else [(0, 2), (1,)]
        )
        assert len(batch) == 3
        together = t.denoiser(x, sigma, batch)
        for i in range(3):
            alone = t.denoiser(x[i : i + 1], sigma[i : i + 1], maker.batch([items[i]]))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ambient", [True, False])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_encoding_is_that_of_the_hosts_node(family, ambient):
    import nodes

    clip = tiny.clip(family)
    with torch.inference_mode():
        expected = nodes.CLIPTextEncode().encode(clip, "a red fox")[0]
    with torch.inference_mode(ambient):
        encoded = encode_texts(clip, ["a red fox"])["a red fox"]
    assert torch.equal(encoded.text, expected[0][0])
    assert torch.equal(encoded.extras["pooled_output"], expected[0][1]["pooled_output"])
    for tensor in (encoded.text, encoded.extras["pooled_output"]):
        assert not tensor.is_inference() and not tensor.requires_grad
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    (encoded.text * torch.ones(1, requires_grad=True)).sum().backward()


LITERAL = [
    ("saber (fate), red", "saber (fate), red"),
    ("((best)) (a:1.4) :(", "((best)) (a:1.4) :("),
    ("a) b (c", "a) b (c"),
    (r"saber \(fate\)", "saber (fate)"),  # as taggers write it for prompts
    (r"c:\dir\x, (^_^)", r"c:\dir\x, (^_^)"),
]


@pytest.mark.parametrize("which", ["sd1", "sdxl", "t5"])
@pytest.mark.parametrize(("text", "meant"), LITERAL)
def test_brackets_of_a_caption_are_brackets(which, text, meant):
    """The library's tokenizer, which knows of no weights, says what the tokens of a text are."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    from comfy.text_encoders import flux

    kinds = {
        "sd1": comfy.sd1_clip.SD1Tokenizer,
        "sdxl": comfy.sdxl_clip.SDXLTokenizer,
        "t5": flux.FluxTokenizer,
    }
    made = kinds[which]()
    for name, rows in made.tokenize_with_weights(literal(text)).items():
        own = getattr(made, {"l": "clip_l", "g": "clip_g"}.get(name, name))
        wanted = own.tokenizer(meant)["input_ids"]
        assert [token for token, _ in rows[0]][: len(wanted)] == wanted
        assert {weight for row in rows for _, weight in row} == {1.0}


def test_texts_without_brackets_stay_as_they_are():
    for text in ("", "a red fox, {a|b}", r"back\slash", "[trigger] <lora:x:1>"):
        assert literal(text) == text


def test_each_distinct_text_is_encoded_once():
    clip = tiny.clip("sd15")
    seen, tokenize = [], clip.tokenize
    clip.tokenize = lambda text: seen.append(text) or tokenize(text)
    assert set(encode_texts(clip, ["b", "a", "b"])) == {"a", "b"}
    assert seen == ["b", "a"]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_an_encoding_is_the_hosts_conditioning_again(family):
    import nodes

    clip = tiny.clip(family)
    ((text, extras),) = encode_text(clip, "a red fox").conditioning()
    ((wanted, others),) = nodes.CLIPTextEncode().encode(clip, "a red fox")[0]
    assert torch.equal(text, wanted)
    assert extras.keys() == others.keys()
    assert torch.equal(extras["pooled_output"], others["pooled_output"])


def test_settings_of_the_clip_on_the_wire_count():
    clip = tiny.clip("sdxl")
    other = clip.clone()
    other.clip_layer(-1)
    assert not torch.equal(encode_text(clip, "a").text, encode_text(other, "a").text)


def test_real_texts_train_the_model():
    clip = tiny.clip("sdxl")
    texts = encode_texts(clip, ["a red fox", ""])
    with trainee(tiny.model("sdxl"), precision="fp32") as t:
        family_check(t.model, clip)
        maker = Conditioner(t.model, t.device)
        batch = maker.batch([maker.per_item(e, width=64, height=64) for e in texts.values()])
        adapters = tiny.Attached(t.diffusion_model)
        out = t.denoiser(tiny.latent("sdxl", batch=2), torch.tensor([0.5, 1.0]), batch)
        out.square().mean().backward()
        assert all(g is not None for g in adapters.gradients())
        adapters.remove()
    assert all(not v.requires_grad for v in batch.groups[0][1].values())


def test_a_clip_of_another_family_is_named():
    small, large = tiny.clip("sd15"), tiny.clip("sdxl")
    family_check(tiny.model("sd15"), small)
    family_check(tiny.model("sdxl"), large)
    with pytest.raises(
        ValueError,
        match=r"CLIP \(SD1\) makes text of width 48, the MODEL \(SDXL\) takes 96: connect",
    ):
        family_check(tiny.model("sdxl"), small)
    for family, width in (("sd15", 48), ("sd3", 64), ("flux", 64)):
        with pytest.raises(
            ValueError, match=rf"CLIP \(SDXL\) makes text of width 96.*takes {width}"
        ):
            family_check(tiny.model(family), large)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_pooled_text_of_another_width_is_named(family):
    """SD3 and Flux share T5's text width; the pooled text tells them apart."""
    clip, model = tiny.clip("sd15"), tiny.model(family)
    good = Encoded.from_conditioning(tiny.conditioning(family))
    family_check(model, clip, good)
    width = tiny.POOLED[family]
    wrong = Encoded(good.text, {"pooled_output": torch.zeros(1, width + 8)})
    with pytest.raises(ValueError, match=f"pooled text of width {width + 8}.*takes {width}"):
        family_check(model, clip, wrong)
    with pytest.raises(ValueError, match="pooled text of width 0"):
        family_check(model, clip, Encoded(good.text))


def test_conditioning_that_belongs_to_sampling_is_refused():
    one = tiny.conditioning("sdxl")
    with pytest.raises(ValueError, match="one prompt, this one 2"):
        Encoded.from_conditioning([*one, *one])
    with pytest.raises(ValueError, match="cannot carry control, mask"):
        Encoded.from_conditioning(
            [[one[0][0], {"mask": torch.ones(1), "control": object(), "area": None}]]
        )
    clip = tiny.clip("sd15")
    clip.apply_hooks_to_conds = object()
    with pytest.raises(ValueError, match="CLIP carries hooks"):
        encode_text(clip, "a")
