# SPDX-License-Identifier: Apache-2.0
"""Linear CKA against its own identities and against the form with Gram matrices."""

import math

import pytest
import torch

from graft.metrics.cka import linear_cka


def sample(samples=50, features=7, seed=0):
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed)).double()


def test_a_rotation_a_factor_and_a_shift_change_nothing():
    x = sample()
    rotation = torch.linalg.qr(sample(7, 7, 1))[0]
    assert linear_cka(x, 3.5 * x @ rotation + 2) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x @ rotation, sample(seed=2)) == pytest.approx(linear_cka(x, sample(seed=2)))
    assert linear_cka(x, sample(seed=2)) == pytest.approx(linear_cka(sample(seed=2), x))


def test_it_is_the_alignment_of_centred_gram_matrices():
    x, y = sample(), sample(features=4, seed=3)
    centre = torch.eye(50).double() - 1 / 50
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741 - the paper's letters
    assert linear_cka(x, y) == pytest.approx(
        float((k * l).sum() / (k.norm() * l.norm())), rel=1e-12
    )


def test_orthogonal_columns_have_none_and_a_stretched_one_has_the_closed_form():
    x = torch.linalg.qr(sample(60, 6, 4) - sample(60, 6, 4).mean(0))[0]
    assert linear_cka(x[:, :3], x[:, 3:]) == pytest.approx(0.0, abs=1e-12)
    stretched = x[:, :2] * torch.tensor([1.0, 3.0]).double()
    # |Y^T X|^2 = 1 + 9, |X^T X| = sqrt 2, |Y^T Y| = sqrt 82
    assert linear_cka(x[:, :2], stretched) == pytest.approx(10 / math.sqrt(164), rel=1e-12)


def test_what_has_no_variance_has_no_number_and_unequal_samples_are_refused():
    assert math.isnan(linear_cka(sample(), torch.ones(50, 3)))
    with pytest.raises(ValueError, match="not 50 and 49"):
        linear_cka(sample(), sample(49))
