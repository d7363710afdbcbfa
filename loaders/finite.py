# SPDX-License-Identifier: Apache-2.0
"""Whether the numbers of a file are numbers: a training that broke leaves NaN and infinities."""

from collections.abc import Mapping

import torch


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The tensors that hold NaN or an infinity.

    Args:
        tensors: Of any shape and kind, by name.

    Returns:
        Their names in order; none as a rule.
    """
    return sorted(name for name, tensor in tensors.items() if not _is_finite(tensor))


def refuse_not_finite(what: str, tensors: Mapping[str, torch.Tensor], remedy: str) -> None:
    """Refuse tensors that hold NaN or an infinity.

    Args:
        what: Whose they are, as the message calls it.
        tensors: Of any shape and kind, by name.
        remedy: What to do, as a sentence.

    Raises:
        ValueError: Names the first of them, and says how many they are.
    """
    broken = not_finite(tensors)
    if broken:
        raise ValueError(
            f"{what} has values that are no finite numbers (NaN or infinity) in {len(broken)} of its {len(tensors)} "
            f"tensors, the first is {broken[0]}. {remedy}"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # Kinds of 8 bits have no test of their own.
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(values).all())
