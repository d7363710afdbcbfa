# SPDX-License-Identifier: Apache-2.0
"""Names and shapes that the host reads."""

import pytest
import torch

from graft.loaders import renaming

HOMES = {"lora_unet_a_b": "diffusion_model.a.b", "diffusion_model.a.b": "diffusion_model.a.b"}


def test_kohyas_limit_of_an_oft_is_alpha_times_the_outputs():
    """0.1 on 3 blocks of 4: the host takes alpha itself for the limit, 1.2."""
    tensors = {
        "oft_unet_a_b.oft_blocks": torch.ones(3, 4, 4),
        "oft_unet_a_b.alpha": torch.tensor(0.1),
    }
    made = renaming.rename(tensors, {}, HOMES)
    assert set(made.tensors) == {"diffusion_model.a.b.oft_blocks", "diffusion_model.a.b.alpha"}
    assert float(made.tensors["diffusion_model.a.b.alpha"]) == pytest.approx(1.2)
    kept = renaming.rename(
        {k.replace("oft_unet", "lora_unet"): t for k, t in tensors.items()}, {}, HOMES
    )
    assert float(kept.tensors["diffusion_model.a.b.alpha"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "end",
    ["hada_w1_a", "lokr_w2_b", "lokr_t2", "a1.weight", "diff", "diff_b", "w_norm", "set_weight"],
)
def test_every_kind_of_tensor_keeps_its_end(end):
    found = renaming.find([f"base_model.model.a.b.{end}"], HOMES)
    assert next(iter(found.values())).key == f"diffusion_model.a.b.{end}"


def test_what_has_no_layer_keeps_its_name():
    tensors = {"other.lora_up.weight": torch.ones(2, 1), "plain": torch.ones(1)}
    made = renaming.rename(tensors, {}, HOMES)
    assert set(made.tensors) == set(tensors) and made.layers == []


def test_an_alpha_is_one_number():
    halves = {f"diffusion_model.a.b.lora_{h}.weight": torch.ones(2, 2) for h in ("up", "down")}
    with pytest.raises(ValueError, match=r"alpha has the shape \[2\], and is one number"):
        renaming.rename(halves | {"diffusion_model.a.b.alpha": torch.ones(2)}, {}, HOMES)
