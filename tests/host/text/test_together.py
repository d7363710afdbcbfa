# SPDX-License-Identifier: Apache-2.0
"""Several prompts at once are what the host makes of each, and so are their gradients."""

import pytest
import torch

from tests.host.text.test_tokens import TEXTS, vectors

pytestmark = pytest.mark.comfy


def sd3():
    """SD3's three encoders in miniature: CLIP L and G, and a T5 that tells its mask, too."""
    import comfy.sd
    import comfy.supported_models_base
    from comfy.text_encoders import sd3_clip

    from tests.host import tiny

    def clip(width, heads):
        return {
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "projection_dim": width,
        }

    t5 = {
        "d_ff": 64,
        "d_kv": 16,
        "d_model": 4096,
        "num_heads": 1,
        "num_layers": 1,
        "vocab_size": 32128,
    }
    options = {
        "clip_l_model_config": clip(*tiny.CLIP_SIZES["l"]),
        "clip_g_model_config": clip(*tiny.CLIP_SIZES["g"]),
        "t5xxl_model_config": t5,
        "dtype": torch.float32,
    }
    model = sd3_clip.sd3_clip(dtype_t5=torch.float32, t5_attention_mask=True)
    target = comfy.supported_models_base.ClipTarget(sd3_clip.SD3Tokenizer, model)
    with torch.inference_mode():
        made = comfy.sd.CLIP(target, model_options=options)
        tiny.randomize(made.cond_stage_model, 1)
    return made


@pytest.fixture(scope="module", params=["sdxl", "sd15", "sd3"])
def clip(request, comfy):
    from tests.host import tiny

    return sd3() if request.param == "sd3" else tiny.clip(request.param)


def words(clip):
    from graft.host.text import tokens

    widths = {
        key: int(e.table.shape[1]) for key, e in tokens.encoders(clip).items() if e.is_trainable
    }
    return vectors(**widths)


def each(trained, texts, vectors):
    """One after the other, as the host does it."""
    return {text: trained.encode([text], vectors)[text] for text in texts}


def test_together_is_one_by_one(clip):
    from graft.host.text.text_trainee import text_trainee

    new = words(clip)
    with text_trainee(clip) as trained:
        want, got = each(trained, TEXTS, new), trained.encode(TEXTS, new)
    for text in TEXTS:
        assert got[text].extras.keys() == want[text].extras.keys()
        torch.testing.assert_close(got[text].text, want[text].text, atol=2e-5, rtol=1e-4)
        for key, value in want[text].extras.items():
            torch.testing.assert_close(got[text].extras[key], value, atol=2e-5, rtol=1e-4)


def test_gradients_are_those_of_one_by_one(clip):
    from graft.host.text.text_trainee import text_trainee

    new = words(clip)
    every = [v.requires_grad_() for by_key in new.values() for v in by_key.values()]
    found = []
    with text_trainee(clip) as trained:
        for encode in (each, type(trained).encode):
            made = encode(trained, TEXTS, new)
            loss = sum(
                (weight + 1) * (one.text.sin().sum() + one.extras["pooled_output"].sum())
                for weight, one in enumerate(made.values())
            )
            found.append(torch.autograd.grad(loss, every))
    for one, other in zip(*found, strict=True):
        assert one.norm() > 0
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_an_encoder_runs_once_and_is_its_own_again(clip):
    from graft.host.text import tokens
    from graft.host.text.text_trainee import text_trainee

    runs = []
    with text_trainee(clip) as trained:
        parts = [m for m in trained.model.modules() if hasattr(m, "process_tokens")]
        for part in parts:
            part.register_forward_pre_hook(lambda module, _: runs.append(module))
        trained.encode(["a", "a red cat", "two"], {})
        counts = {tokens.is_clip(part): runs.count(part) for part in parts}
        assert all("encode" not in vars(part) for part in parts)
    assert counts == {True: 1} | ({False: 3} if len(parts) == 3 else {})
