# SPDX-License-Identifier: Apache-2.0
"""NaN and infinities of every kind are found, and nothing else."""

import pytest
import torch

from graft.loaders.finite import not_finite, refuse_not_finite


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_each_is_found(dtype, value):
    good = torch.full((3, 2), 7.0).to(dtype)
    bad = torch.tensor([1.0, value]).to(dtype)
    assert not_finite({"b": bad, "a": good, "c": bad}) == ["b", "c"]


def test_float8_without_infinities_has_nan():
    # e4m3fn: all ones behind the sign are NaN, and 448 is the largest number.
    bits = torch.tensor([0x7F, 0xFF, 0x7E], dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert not_finite({"nan": bits[:1], "-nan": bits[1:2], "448": bits[2:]}) == ["-nan", "nan"]


def test_other_kinds_and_empty_ones_are_fine():
    refuse_not_finite(
        "it", {"i": torch.tensor([2**62]), "e": torch.zeros(0), "t": torch.tensor(True)}, ""
    )


def test_the_first_is_named_with_how_many():
    bad = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match=r"^'x' has .* in 2 of its 3 tensors, the first is b\. Do"):
        refuse_not_finite("'x'", {"c": bad, "b": bad, "a": torch.ones(1)}, "Do.")
