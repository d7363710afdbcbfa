# SPDX-License-Identifier: Apache-2.0
"""The computed table: sizes that others published, sums by hand, and that the page has what is computed."""

import pytest
import torch

pytestmark = pytest.mark.comfy
GIB = 2**30


@pytest.mark.parametrize(
    "name,parameters", [("SD15", 859_520_964), ("SDXL", 2_567_463_684), ("Flux", 11_901_408_320)]
)
def test_the_layouts_are_the_published_ones(name, parameters):
    """The UNets' parameters as their model cards and diffusers count them."""
    from graft.benchmarks.memory_table import trainable

    with trainable(name, rank=4) as (network, attached, _):
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        assert all(p.is_meta for p in attached.parameters().values())


def test_fused_attention_keeps_q_k_v_the_result_and_a_number_a_row():
    """B 2, H 3, L 5, D 7 in bf16: four tensors of 210 x 2 bytes and 30 x 4, of which the result alone is made new."""
    from graft.benchmarks.memory_table import attend
    from graft.trainers.allocations import Allocations

    q = torch.empty(2, 5, 21, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with Allocations("meta") as counted:
        out = attend(None, q, q, q, 3)
        assert out.shape == (2, 5, 21)
        # The heads are put side by side again, in a copy.
        assert counted.live == 2 * 210 * 2 + 30 * 4
        out.sum().backward()
    assert q.grad.shape == q.shape


def test_the_most_pictures_by_hand():
    """12 GiB - 1 for others - 4 of weights - 1 trained = 6, nine tenths of it 5.4; 3 more for gradients and AdamW
    leave 2.4; a first picture takes 1.2 and each more 0.5: 1.2 + 2 * 0.5 = 2.2 fits, 2.7 does not."""
    from graft.benchmarks.memory_table import Case, table

    sizes = [int(size * GIB) for size in (4, 1, 1.2, 0.5)]
    case = Case("SDXL", 1024, "on", *sizes)
    assert case.most(12) == 3
    assert case.most(6) == 0
    assert "| SDXL | 1024 x 1024 | on | 8.0 | 1.2 | 0.5 | - | 3 |" in table([case])


def test_the_page_has_what_is_computed():
    from graft.benchmarks.memory_table import PAGE, cases, table

    page = PAGE.read_text(encoding="utf-8")
    rows = table(cases("SD15", [512])).splitlines()
    assert len(rows) == 5
    for row in rows:
        assert row in page
