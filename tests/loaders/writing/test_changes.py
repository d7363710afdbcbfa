# SPDX-License-Identifier: Apache-2.0
"""dW of a file without the model: sizes and products by hand, other ranks by the definition."""

import math

import pytest
import torch

from graft.loaders.roles import ALPHA, DOWN, MAGNITUDE, UP
from graft.loaders.writing import changes
from graft.loaders.writing.changes import Wish


def roles(up, down, alpha=None):
    made = {UP: torch.tensor(up), DOWN: torch.tensor(down)}
    return made | ({} if alpha is None else {ALPHA: torch.tensor(alpha)})


ONE = roles([[1.0], [2.0]], [[2.0, 0.0]], 3.0)  # 3 * [[2, 0], [4, 0]]
OTHER = roles([[1.0], [0.0]], [[4.0, 3.0]])  # [[4, 3], [0, 0]]


def test_size_and_product_by_hand():
    """|6, 0; 12, 0|^2 = 180, |4, 3|^2 = 25, and 6 * 4 = 24."""
    assert changes.size("x", ONE) == pytest.approx(math.sqrt(180))
    assert changes.compared("x", ONE, OTHER) == pytest.approx((180, 25, 24))
    full = {"diff": torch.tensor([[4.0, 3.0], [0.0, 0.0]])}
    assert changes.compared("x", ONE, full) == pytest.approx((180, 25, 24))


def test_other_kinds_by_their_definitions():
    """LoHa: ([1 2] o [3 4]) * 2 = [6 16]; LoKr: kron([1 2], [3 4]) = [3 4 6 8]."""
    one = torch.ones(1, 1)
    loha = {"hada_w1_a": one, "hada_w1_b": torch.tensor([[1.0, 2.0]])}
    loha |= {"hada_w2_a": one, "hada_w2_b": torch.tensor([[3.0, 4.0]]), ALPHA: torch.tensor(2.0)}
    assert changes.change("x", loha).tolist() == [[6.0, 16.0]]
    lokr = {"lokr_w1": torch.tensor([[1.0, 2.0]]), "lokr_w2": torch.tensor([[3.0, 4.0]])}
    lokr[ALPHA] = torch.tensor(7.0)  # without effect on full factors, as in LyCORIS and ComfyUI
    assert changes.change("x", lokr).tolist() == [[3.0, 4.0, 6.0, 8.0]]
    assert math.isnan(changes.size("x", {"oft_blocks": torch.ones(1, 2, 2)}))


def test_a_rank_that_is_enough_keeps_all_and_less_the_largest_values():
    """Singular values 5, 2, 1: rank 1 keeps 25 / 30, and 95 % needs rank 2 with 29 / 30."""
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 3, generator=g))[0] for n in (6, 8))
    whole = {"diff": (u * torch.tensor([5.0, 2.0, 1.0])) @ v.T}
    made, kept = changes.reduced("x", whole, Wish(energy=1.0))
    assert made[DOWN].shape == (3, 8) and kept.share == pytest.approx(1.0)
    torch.testing.assert_close(changes.change("x", made), whole["diff"])
    made, kept = changes.reduced("x", whole, Wish(rank=1))
    assert kept.share == pytest.approx(25 / 30) and float(made[ALPHA]) == 1
    made, kept = changes.reduced("x", whole, Wish(energy=0.95))
    assert made[DOWN].shape == (2, 8) and kept.share == pytest.approx(29 / 30)


def test_convolutions_keep_their_kernels_and_doras_their_magnitudes():
    g = torch.Generator().manual_seed(0)
    given = {
        UP: torch.randn(5, 4, 1, 1, generator=g).half(),
        DOWN: torch.randn(4, 3, 3, 3, generator=g).half(),
        MAGNITUDE: torch.rand(5, 1, 1, 1, generator=g),
    }
    made, kept = changes.reduced("x", given, Wish(rank=4))
    assert made[UP].shape == (5, 4, 1, 1) and made[DOWN].shape == (4, 3, 3, 3)
    assert made[UP].dtype == torch.float16 and made[MAGNITUDE] is given[MAGNITUDE]
    assert kept.rank == 4
    torch.testing.assert_close(
        changes.change("x", made), changes.change("x", given), rtol=1e-2, atol=1e-2
    )


def test_nothing_becomes_a_lora_of_zeros():
    made, kept = changes.reduced("x", {"diff": torch.zeros(2, 3)}, Wish(energy=0.9))
    assert made[DOWN].shape == (1, 3) and not made[UP].any() and kept.share == 1


def test_what_does_not_go_together_is_named():
    with pytest.raises(ValueError, match=r"x: the tensors of its LoHa"):
        changes.change("x", {"hada_w1_a": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"x is \(2, 2\) in one and \(2, 3\) in the other"):
        changes.compared("x", ONE, {"diff": torch.ones(2, 3)})
