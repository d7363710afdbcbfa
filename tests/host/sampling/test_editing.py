# SPDX-License-Identifier: Apache-2.0
"""Edits by the host's own guiders: the formula, the maps of attention, what costs nothing, and what is refused."""

import pytest
import torch

from graft.host.sampling import attention_maps, editing, inversion
from graft.host.sampling.sampler import sampler
from graft.samplers import SAMPLERS
from graft.samplers.editing import Edit
from graft.samplers.inversion import INVERSIONS
from tests.host import tiny
from tests.host.sampling.test_inversion import SIGMAS, guider, inverted, sampled

pytestmark = pytest.mark.comfy
MASKS = ["both", "attention", "difference", "none"]


def wanted(family="sdxl", seed=9, places=(1, 2), **settings):
    """An edit; its settings as `Edit` has them."""
    conditioning = tiny.conditioning(family, seed=seed)
    return editing.Wanted(Edit(**settings), conditioning, "zork", places)


def edited(model, family, edits, method="ledits-dpmpp", batch=1, cfg=2.0, skip=0.3):
    """What comes of the way back without edits and with them."""
    plain = guider(model, family, cfg)
    _, (made, _) = inverted(plain, family, method, batch=batch)
    through, sigmas, start, _ = inversion.replayed(made, skip)
    with torch.inference_mode():
        ours, _ = editing.editing(plain, edits)
    return sampled(plain, through, sigmas, start), sampled(ours, through, sigmas, start)


@pytest.mark.parametrize(
    ("family", "mask"),
    [
        *(("sdxl", mask) for mask in MASKS),
        ("sd15", "both"),
        ("sdxl_v", "both"),
        ("sdxl_edm", "both"),
    ],
)
def test_every_unet_is_edited_with_every_mask(family, mask):
    one = wanted(family, mask=mask, threshold=0.7)
    before, after = edited(tiny.model(family), family, [one])
    assert bool(torch.isfinite(after).all()) and not torch.equal(before, after)


@pytest.mark.parametrize(
    "edits",
    [
        [],
        [editing.Wanted(Edit(scale=0.0), None)],
        [editing.Wanted(Edit(start_percent=0.99), None)],
    ],
    ids=["none", "scale 0", "never"],
)
def test_without_an_edit_that_acts_it_is_the_picture_bit_for_bit(edits):
    conds = tiny.conditioning("sdxl", seed=9)
    ready = [editing.Wanted(one.edit, conds) for one in edits]
    before, after = edited(tiny.model("sdxl"), "sdxl", ready)
    assert torch.equal(before, after)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_formula_is_that_of_the_paper(cfg):
    """By asking the host for each D alone: the reference is the negative prompt, or D itself at cfg 1."""
    import comfy.samplers

    model = tiny.model("sdxl")
    plain = guider(model, "sdxl", cfg)
    edits = [
        wanted(scale=2.0, direction="remove", mask="none"),
        wanted(seed=11, scale=3.0, mask="none"),
    ]
    x, found = tiny.latent("sdxl", batch=2) * 3, {}

    def asking(name):
        def sample(model_wrap, sigmas, extra_args, *rest, **more):
            options = {k: extra_args[k] for k in ("model_options", "seed")}
            found[name] = model_wrap(x, x.new_full((2,), 2.5), **options)
            if name == "edited":
                sigma, more = x.new_full((2,), 2.5), extra_args["model_options"]
                for key, conds in model_wrap.conds.items():
                    found[key] = comfy.samplers.calc_cond_batch(
                        model_wrap.inner_model, [conds], x, sigma, more
                    )[0]
            return x

        return type("Asking", (), {"sample": staticmethod(sample)})()

    with torch.inference_mode():
        ours, _ = editing.editing(plain, edits)
        for name, one in (("plain", plain), ("edited", ours)):
            one.sample(torch.zeros_like(x), x, asking(name), SIGMAS[2:], disable_pbar=True, seed=0)
    reference = found["plain"] if cfg == 1 else found["negative"]
    expected = found["plain"] - 2 * (found["graft edit 0"] - reference)
    expected = expected + 3 * (found["graft edit 1"] - reference)
    torch.testing.assert_close(found["edited"], expected, rtol=0, atol=1e-4)
    assert float((found["edited"] - found["plain"]).abs().max()) > 0.01


def test_the_maps_are_the_softmax_of_the_layers_own_queries_and_keys():
    """Hooks on to_q and to_k of every cross-attention layer see what the maps are made of."""
    import comfy.samplers

    model = tiny.model("sd15")
    network = model.model.diffusion_model
    keys = attention_maps.layers(network)
    kept, handles = {}, []
    for name, number, index in keys:
        block = getattr(network, f"{name}_blocks")[number]
        (part,) = (p for p in block if hasattr(p, "transformer_blocks"))
        layer = part.transformer_blocks[index].attn2
        for which in ("to_q", "to_k"):
            handles.append(
                getattr(layer, which).register_forward_hook(
                    lambda m, i, o, key=(name, number, index, which): kept.__setitem__(key, o)
                )
            )
    words = {0: attention_maps.Words((1, 3), 77), 1: attention_maps.Words(None, 77)}
    x, asked = tiny.latent("sd15", batch=2), []
    maps = attention_maps.AttentionMaps(words)

    def sample(model_wrap, sigmas, extra_args, *rest, **more):
        conds = [model_wrap.conds["positive"], model_wrap.conds["negative"]]
        length = conds[0][0]["model_conds"]["c_crossattn"].cond.shape[1]
        for one in words:
            maps.words[one] = attention_maps.Words(words[one].places, length)
        options = maps.patched(extra_args["model_options"], keys)
        options["model_function_wrapper"] = lambda apply, given: (
            asked.append(given["cond_or_uncond"]),
            apply(given["input"], given["timestep"], **given["c"]),
        )[1]
        sigma = x.new_full((2,), 2.0)
        comfy.samplers.calc_cond_batch(model_wrap.inner_model, conds, x, sigma, options)
        return x

    asking = type("Asking", (), {"sample": staticmethod(sample)})()
    with torch.inference_mode():
        guider(model, "sd15").sample(x * 0, x, asking, SIGMAS, disable_pbar=True, seed=0)
    for handle in handles:
        handle.remove()
    heads = network.input_blocks[keys[0][1]][1].transformer_blocks[0].n_heads
    total, count = 0, 0
    for key in keys:
        q, k = kept[(*key, "to_q")], kept[(*key, "to_k")]
        if q.shape[1] != 64:
            continue
        split = [t.float().reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k)]
        scores = split[0] @ split[1].transpose(2, 3) / split[0].shape[-1] ** 0.5
        total, count = total + scores.softmax(dim=-1).mean(dim=1), count + 1
    assert count >= 2
    # The host may ask about the last conditioning first.
    order = asked[0]
    mean = dict(zip(order, (total / count).chunk(2), strict=True))
    for index, places in ((0, [1, 3]), (1, slice(1, None))):
        expected = mean[index][:, :, places].sum(dim=2).view(2, 8, 8)
        torch.testing.assert_close(maps.of(index, (8, 8)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "latents", "size"),
    [
        ([(64, 64), (32, 32), (16, 16), (8, 8)], (64, 64), (16, 16)),  # SD 1.5 at 512
        ([(64, 64), (32, 32)], (128, 128), (32, 32)),  # SDXL at 1024
        ([(32, 32), (16, 16)], (64, 64), (16, 16)),  # SDXL at 512
        ([(4, 4), (2, 2)], (8, 8), (4, 4)),
        ([(96, 64), (48, 32), (24, 16), (12, 8)], (96, 64), (24, 16)),
    ],
)
def test_the_maps_of_the_paper_are_chosen(sizes, latents, size):
    assert attention_maps.chosen(sizes, latents) == size


def test_attention_that_another_pack_replaced_is_computed_by_it():
    model = tiny.model("sdxl")
    keys = attention_maps.layers(model.model.diffusion_model)
    called = []

    def other(q, k, v, options):
        called.append(options["block"])
        return torch.zeros_like(q)

    replaced = model.clone()
    replaced.set_model_attn2_replace(other, *keys[0][:2])
    plain, ours = (edited(one, "sdxl", [wanted(mask="attention")])[1] for one in (model, replaced))
    assert called and not torch.equal(plain, ours)


@pytest.mark.parametrize("mask", MASKS)
def test_a_picture_is_edited_by_itself_in_any_batch(mask):
    model = tiny.model("sdxl")
    edits = [wanted(mask=mask, threshold=0.5)]
    plain = guider(model, "sdxl")
    four = tiny.latent("sdxl", batch=3)
    out = []
    for rows in (four, four[:1]):
        with torch.inference_mode():
            made, _ = inversion.invert(
                plain, SIGMAS, {"samples": rows}, INVERSIONS.get("ledits-ddim")(), seed=3
            )
            ours, _ = editing.editing(plain, edits)
        through, sigmas, start, _ = inversion.replayed(made, 0.3)
        out.append(sampled(ours, through, sigmas, start))
    torch.testing.assert_close(out[1], out[0][:1], rtol=0, atol=1e-3 * float(four.abs().max()))


def test_a_mask_drawn_by_hand_keeps_the_first_step_outside_of_it():
    model = tiny.model("sdxl")
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    one = editing.Wanted(Edit(mask="none"), tiny.conditioning("sdxl", seed=9), mask=half)
    plain = guider(model, "sdxl")
    x, found = tiny.latent("sdxl"), []

    def sample(model_wrap, sigmas, extra_args, *rest, **more):
        options = {k: extra_args[k] for k in ("model_options", "seed")}
        found.append(model_wrap(x, x.new_full((1,), 2.5), **options))
        return x

    asking = type("Asking", (), {"sample": staticmethod(sample)})()
    with torch.inference_mode():
        for guided in (plain, editing.editing(plain, [one])[0]):
            guided.sample(x * 0, x, asking, SIGMAS[2:], disable_pbar=True, seed=0)
    change = (found[1] - found[0]).abs()
    assert float(change[..., :4].max()) > 0.01 and float(change[..., 4:].max()) == 0


def test_new_pictures_are_drawn_with_edits_by_any_sampler():
    model = tiny.model("sdxl")
    with torch.inference_mode():
        ours, said = editing.editing(guider(model, "sdxl"), [wanted(), wanted(direction="remove")])
    heun = sampler(SAMPLERS.get("edm-heun")())
    out = sampled(ours, heun, SIGMAS, {"samples": torch.zeros(1, 4, 8, 8)})
    assert bool(torch.isfinite(out).all())
    assert "1: add 'zork', scale 5" in said and "2: remove 'zork'" in said and "layers" in said


def test_flow_models_are_edited_by_differences():
    model = tiny.model("sd3")
    conds = tiny.conditioning("sd3", seed=9)
    flow = torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0])
    with torch.inference_mode():
        ours, _ = editing.editing(
            guider(model, "sd3", 1.0), [editing.Wanted(Edit(mask="difference"), conds)]
        )
        with pytest.raises(ValueError, match=r"\(SD3\) has no cross-attention layers .*difference"):
            editing.editing(guider(model, "sd3"), [editing.Wanted(Edit(), conds)])
    ddim = sampler(SAMPLERS.get("ddim")())
    start = {"samples": torch.zeros_like(tiny.latent("sd3"))}
    plain = sampled(guider(model, "sd3", 1.0), ddim, flow, start)
    out = sampled(ours, ddim, flow, start)
    assert bool(torch.isfinite(out).all()) and not torch.equal(plain, out)


def test_words_are_found_among_the_tokens():
    clip = tiny.clip("sdxl")
    one = editing.wanted(Edit(), "a blue circle", clip, None, None)
    assert one.places == (1, 2, 3)
    assert one.conditioning[0][0].shape[1] == 77
    given = tiny.conditioning("sdxl")
    assert editing.wanted(Edit(), "", None, given, None).places is None
    both = editing.wanted(Edit(), "blue", clip, given, None)
    assert both.conditioning is given and both.places == (1,)


def test_what_is_no_edit_is_refused():
    model = tiny.model("sdxl")
    with pytest.raises(ValueError, match="needs a text, and a CLIP"):
        editing.wanted(Edit(), "  ", tiny.clip("sdxl"), None, None)
    with pytest.raises(ValueError, match="needs a text, and a CLIP"):
        editing.wanted(Edit(), "blue", None, None, None)
    with pytest.raises(ValueError, match="CONDITIONING of the edit is empty"):
        editing.wanted(Edit(), "", None, [], None)
    with torch.inference_mode():
        ours, _ = editing.editing(guider(model, "sdxl"), [wanted()])
        with pytest.raises(ValueError, match="This GUIDER edits already"):
            editing.editing(ours, [wanted()])
        with pytest.raises(
            ValueError, match="edit 1 has vectors of 48 numbers, and that of GUIDER 96"
        ):
            editing.editing(guider(model, "sdxl"), [wanted("sd15")])


def test_the_guider_that_came_is_not_changed():
    model = tiny.model("sdxl")
    plain = guider(model, "sdxl")
    before = dict(plain.original_conds), type(plain), dict(model.model_options)
    with torch.inference_mode():
        editing.editing(plain, [wanted()])
    assert (plain.original_conds, type(plain), model.model_options) == before
