# SPDX-License-Identifier: Apache-2.0
"""Input perturbation, masks, limits and stratified levels of an objective."""

import pytest
import torch

from graft.trainers.data.batch import Batch
from graft.trainers.denoiser import c_out
from graft.trainers.objectives import NOISE, Noised, Objective
from graft.trainers.objectives.levels import limits
from graft.trainers.random import Draws
from tests.trainers.toy import Toy, ToyNetwork

CLEAN = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(1))
DRAWS = Draws(2, 5, range(4), 4)


@pytest.mark.parametrize("family", ["eps", "v", "flow", "edm"])
def test_input_perturbation_asks_for_the_unperturbed_target(family):
    """Ning et al. 2023: |F(x') - target at x|^2 with x' of the noise n + gamma n', target by hand."""
    toy = Toy(family, ToyNetwork())
    noised = Objective(input_perturbation=0.3).noised(toy, CLEAN, DRAWS)
    batch = Batch(CLEAN, torch.zeros(4))
    loss = Objective().sample_loss(toy, noised, batch)
    n, further = DRAWS.normal(CLEAN.shape[1:]), DRAWS.normal(CLEAN.shape[1:], "perturbation")
    s = noised.sigma.view(-1, 1, 1, 1)
    if family == "flow":
        x = (1 - s) * CLEAN + s * (n + 0.3 * further)
    else:
        x = CLEAN + s * (n + 0.3 * further)
    target = {
        "eps": n,
        "flow": n - CLEAN,
        "v": (n - s * CLEAN) / (1 + s**2).sqrt(),
        "edm": (CLEAN - 0.25 / (s**2 + 0.25) * (CLEAN + s * n)) / c_out(toy, noised.sigma),
    }[family]
    published = (toy.network(x, noised.sigma, batch.cond) - target).square().mean((1, 2, 3))
    torch.testing.assert_close(noised.x, x)
    torch.testing.assert_close(loss, published, rtol=2e-4, atol=1e-5)


def test_without_perturbation_and_mask_nothing_changes():
    toy = Toy("eps", ToyNetwork())
    noised = Objective().noised(toy, CLEAN, DRAWS)
    sigma = toy.sigmas[(DRAWS.uniform("sigma") * 1000).long()]
    assert torch.equal(noised.sigma, sigma) and noised.target is CLEAN
    assert torch.equal(noised.x, CLEAN + sigma.view(-1, 1, 1, 1) * DRAWS.normal(CLEAN.shape[1:]))


def masked_loss(mask, **settings):
    """The loss of a denoiser that is wrong by sigma times 1 in the left half, and by 3 in the right."""
    wrong = torch.cat([torch.ones(4, 4, 6, 3), 3 * torch.ones(4, 4, 6, 3)], 3)
    toy = Toy("eps", lambda x, sigma, cond: wrong)
    noised = Noised(torch.ones(4), CLEAN, CLEAN)
    return Objective(**settings).sample_loss(toy, noised, Batch(CLEAN, None, mask=mask))


def test_a_mask_weighs_places_by_hand():
    """Squares 1 and 9: without a mask 5; the right half alone 9; the left at a half (0.5 + 9) / 1.5; nothing 0."""
    mask = torch.ones(4, 1, 6, 6)
    mask[1:, :, :, :3] = 0.0
    mask[2, :, :, :3] = 0.5
    mask[3] = 0.0
    assert masked_loss(None).tolist() == pytest.approx([5.0] * 4)
    assert masked_loss(mask).tolist() == pytest.approx([5.0, 9.0, 9.5 / 1.5, 0.0])
    plain = masked_loss(mask, mask_normalize=False)
    assert plain.tolist() == pytest.approx([5.0, 4.5, 4.75, 0.0])


def test_a_mask_covers_every_frame_of_a_video():
    clean = torch.zeros(1, 4, 3, 6, 6)
    toy = Toy("eps", lambda x, sigma, cond: torch.ones_like(x))
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :2] = 1.0
    noised = Noised(torch.ones(1), clean, clean)
    loss = Objective(mask_normalize=False).sample_loss(toy, noised, Batch(clean, None, mask=mask))
    assert float(loss) == pytest.approx(1 / 3)


def test_limits_of_a_discrete_model_are_in_its_table():
    """The table is 0.03 + 14.57 i / 999: the first level above 0.5 is the 33rd, the last below 2 the 135th."""
    toy = Toy("eps")
    low, high = limits(toy, 0.5, 2.0)
    assert low == pytest.approx(0.03 + 14.57 * 33 / 999) and high == pytest.approx(
        0.03 + 14.57 * 135 / 999
    )
    assert limits(Toy("edm"), 0.5, 2.0) == (0.5, 2.0)
    assert limits(toy) == (pytest.approx(0.03), pytest.approx(14.6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_min": 20.0}, "its levels run from 0.03 to 14.6"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min must be the lower"),
        ({"sigma_min": 0.301, "sigma_max": 0.302}, "no noise level between"),
    ],
)
def test_limits_without_a_level_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings).levels(torch.tensor([0.5], dtype=torch.float64), Toy("eps"))


def test_a_law_with_nothing_inside_the_limits_is_refused():
    law = NOISE.parse("log-normal", "p_mean=-15, p_std=0.1")
    with pytest.raises(ValueError, match="'log-normal' draws nothing between sigma 0.03 and 14.6"):
        Objective(law).levels(torch.tensor([0.5], dtype=torch.float64), Toy("edm"))


def test_stratified_levels_are_one_of_each_part_and_the_same_in_every_cut():
    whole = DRAWS.stratified("sigma")
    assert sorted((whole * 4).long().tolist()) == [0, 1, 2, 3]
    parts = [Draws(2, 5, [slot], 4).stratified("sigma") for slot in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    orders = {
        tuple((Draws(2, s, range(4), 4).stratified("sigma") * 4).long().tolist()) for s in range(60)
    }
    assert len(orders) > 12
