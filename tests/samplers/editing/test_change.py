# SPDX-License-Identifier: Apache-2.0
"""Edits over D against LEDITS++ as it is written, over eps, with diffusers' own smoothing; and what one edit may be."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import LeditsGaussianSmoothing

from graft.samplers.editing import Edit, Part, edited
from graft.samplers.editing.masks import of_attention, of_user, smoothed, strongest

MASKS = ["both", "attention", "difference", "none"]


def tensors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def plain(eps_u, eps_c, edit, attention, drawn, size):
    """The pipeline's loop for one edit, in its own words."""
    guidance = (eps_c - eps_u) * (-1 if edit.direction == "remove" else 1) * edit.scale
    if drawn is not None:
        guidance = guidance * drawn
    if edit.mask in ("both", "attention"):
        smooth = LeditsGaussianSmoothing("cpu")
        maps = smooth(F.pad(attention[:, None], (1, 1, 1, 1), mode="reflect"))[:, 0]
        limit = torch.quantile(maps.flatten(start_dim=1), edit.threshold, dim=1)
        where = torch.where(maps >= limit[:, None, None], 1.0, 0.0)
        where = F.interpolate(where[:, None], size).repeat(1, 4, 1, 1)
    if edit.mask in ("both", "difference"):
        sums = guidance.abs().sum(dim=1, keepdim=True).repeat(1, 4, 1, 1)
        limit = torch.quantile(sums.flatten(start_dim=2), edit.threshold, dim=2)
        most = torch.where(sums >= limit[:, :, None, None], 1.0, 0.0)
        guidance = guidance * most
    return guidance * where if edit.mask in ("both", "attention") else guidance


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_drawn", [False, True])
def test_two_edits_over_d_are_those_over_eps(mask, is_drawn):
    """D = x - sigma eps, so that eps + guidance is D - sigma guidance."""
    sigma, size = 2.5, (16, 16)
    x, eps_u = tensors(2, 4, *size), tensors(2, 4, *size, seed=1)
    edits = [
        Edit(scale=6.0, threshold=0.8, mask=mask),
        Edit("remove", 3.0, threshold=0.6, mask=mask),
    ]
    drawn = tensors(2, 1, *size, seed=9).gt(0).float() if is_drawn else None
    eps, parts = eps_u.clone(), []
    for number, edit in enumerate(edits, 2):
        eps_c = tensors(2, 4, *size, seed=number)
        attention = tensors(2, 4, 4, seed=10 + number).exp()
        eps = eps + plain(eps_u, eps_c, edit, attention, drawn, size)
        user = None if drawn is None else drawn[:, 0]
        parts.append(Part(edit, edit.weight(0.5), x - sigma * eps_c, attention, user))
    base = x - sigma * eps_u
    torch.testing.assert_close(edited(base, base, parts), x - sigma * eps, rtol=0, atol=1e-4)
    assert float((eps - eps_u).abs().max()) > 1


@pytest.mark.parametrize("mask", MASKS)
def test_a_picture_is_edited_by_itself_in_any_batch(mask):
    base, other = tensors(3, 4, 8, 8), tensors(3, 4, 8, 8, seed=1)
    attention, drawn = tensors(3, 4, 4, seed=2).exp(), torch.ones(1, 20, 30)
    edit = Edit(mask=mask, threshold=0.7)

    def run(rows):
        part = Part(edit, 5.0, other[rows], attention[rows], drawn)
        return edited(base[rows], base[rows], [part])

    assert torch.equal(run(slice(0, 1)), run(slice(0, 3))[:1])
    assert torch.equal(run(slice(2, 3)), run(slice(0, 3))[2:])


def test_the_threshold_is_the_share_that_is_left_alone():
    values = torch.arange(100.0).view(1, 1, 10, 10)
    assert float(strongest(values, 0.9).sum()) == 10
    assert float(strongest(values, 0.0).sum()) == 100
    assert float(strongest(values, 1.0).sum()) == 1
    two = strongest(torch.cat([values, values * 100]), 0.5)
    assert two.sum(dim=(1, 2, 3)).tolist() == [50, 50]


def test_the_gaussian_is_that_of_diffusers():
    maps = tensors(2, 1, 5, 7)
    wanted = LeditsGaussianSmoothing("cpu")(F.pad(maps, (1, 1, 1, 1), mode="reflect"))
    torch.testing.assert_close(smoothed(maps), wanted)
    assert torch.allclose(smoothed(torch.ones(1, 1, 1, 3)), torch.ones(1, 1, 1, 3))


def test_masks_have_the_size_of_the_latents():
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 0] = 1
    mask = of_attention(maps, 0.9, (10, 12))
    assert mask.shape == (1, 1, 10, 12) and mask[0, 0, 0, 0] == 1 and mask[0, 0, -1, -1] == 0
    half = torch.cat([torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], dim=2)
    drawn = of_user(half, torch.zeros(3, 4, 8, 8))
    assert drawn.shape == (3, 1, 8, 8)
    assert torch.equal(drawn[2, 0, 0], torch.tensor([0.0] * 4 + [1.0] * 4))
    two = torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
    assert of_user(two, torch.zeros(3, 4, 8, 8)).mean(dim=(1, 2, 3)).tolist() == [0, 1, 0]
    assert of_user(half, torch.zeros(2, 4, 3, 8, 8)).shape == (2, 1, 1, 8, 8)


def test_video_is_edited_by_difference():
    base = tensors(1, 4, 3, 8, 8)
    other = base.clone()
    other[:, :, 1, 2, 2] += 5
    out = edited(base, base, [Part(Edit(mask="difference", threshold=0.99), 2.0, other)])
    assert (out != base).any(dim=1).nonzero().tolist() == [[0, 1, 2, 2]]


def test_an_edit_acts_between_its_ends():
    edit = Edit(scale=4.0, start_percent=0.2, end_percent=0.6)
    assert [edit.weight(p) for p in (0.0, 0.19, 0.2, 0.59, 0.6)] == [0, 0, 4, 4, 0]
    assert Edit("remove", 4.0).weight(0.5) == -4.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"start_percent": 0.5, "end_percent": 0.5}, "must begin before it ends"),
        ({"threshold": 1.1}, "threshold is 1.1"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"mask": "all"}, "Unknown mask 'all'"),
        ({"direction": "more"}, "Unknown direction 'more'"),
    ],
)
def test_settings_have_limits(values, said):
    with pytest.raises(ValueError, match=said):
        Edit(**values)
