# SPDX-License-Identifier: Apache-2.0
"""BOFT: an orthogonal matrix in which every row meets every other, by hand and by LyCORIS' shuffles of the weight."""

import pytest
import torch
from torch import nn

from graft.adapters.attach import Attached
from graft.adapters.boft import BOFT

from .test_lora import randomize


def layer_of(rows, rank, **settings):
    model = nn.Sequential(nn.Linear(12, rows)).requires_grad_(False)
    attached = Attached(model, BOFT(rank, "all", **settings), 0)
    return model, attached, attached.layers["0"]


@pytest.mark.parametrize(
    "rows,rank,shape",
    [
        (16, 4, (3, 4, 4, 4)),
        (640, 16, (7, 64, 10, 10)),  # 640 = 64 times 10
        (320, 8, (6, 32, 10, 10)),  # of 320 = 32 times 10 no part is even and up to 8
        (24, 6, (3, 4, 6, 6)),
        (6, 8, (1, 1, 6, 6)),
    ],
)
def test_shapes(rows, rank, shape):
    assert layer_of(rows, rank)[2].blocks.shape == shape


def test_it_is_orthogonal_and_every_row_meets_every_other():
    _, attached, layer = layer_of(32, 4)
    randomize(attached)
    with torch.no_grad():
        whole = torch.eye(32) + layer.change(torch.eye(32)).T
    torch.testing.assert_close(whole @ whole.T, torch.eye(32), rtol=0, atol=5e-6)
    assert int((whole.abs() > 1e-7).sum()) > 0.95 * 32 * 32
    _, attached, layer = layer_of(32, 4, factors=1)
    randomize(attached)
    with torch.no_grad():
        once = torch.eye(32) + layer.change(torch.eye(32)).T
    assert int((once.abs() > 1e-7).sum()) <= 32 * 4


def test_two_factors_of_two_rows_by_hand():
    """4 rows in blocks of 2, t = 1 turns by 90 degrees: R = [[0, 1], [-1, 0]].

    Factor 0 pairs neighbours, rows (0, 1) and (2, 3); factor 1 pairs rows 2 apart, (0, 2) and (1, 3).
    Rows a, b, c, d become b, -a, d, -c, and then d, -c, -b, a.
    """
    model, _, layer = layer_of(4, 2, factors=2)
    assert layer.blocks.shape == (2, 2, 2, 2)
    with torch.no_grad():
        layer.blocks[..., 0, 1] = 1.0
        rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        torch.testing.assert_close(
            rows + layer.change(rows), torch.tensor([[4.0, -3.0, -2.0, 1.0]])
        )


def test_an_odd_number_of_outputs_is_named():
    with pytest.raises(ValueError, match="0: Its 13 outputs are an odd number"):
        layer_of(13, 8)
