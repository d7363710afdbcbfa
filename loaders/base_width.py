# SPDX-License-Identifier: Apache-2.0
"""Which kind of Stable Diffusion a file was made for, by the width of the texts that its cross-attentions read."""

import re
from collections.abc import Iterable, Mapping

from .roles import DOWN, split

_NAMES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
_READS_TEXT = re.compile(r"(?:^|[._])attn2[._](?:processor[._])?to_[kv]$")
_ADDED = (DOWN, "diff")  # of shape [rank or outputs, width]


def of_file(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The width of the texts that a file is made for, 0 where it cannot be told.

    Args:
        shapes: Shapes of its tensors by name, in any dialect.

    Returns:
        The columns of the first layer that reads texts.
    """
    for key, shape in shapes.items():
        layer, role = split(key)
        if role in _ADDED and len(shape) == 2 and _READS_TEXT.search(layer):
            return shape[1]
    return 0


def refuse_other(shapes: Mapping[str, tuple[int, ...]], model: Iterable[tuple[str, int]]) -> None:
    """Refuse a file for another kind of Stable Diffusion, some layers of which may fit by chance.

    Args:
        shapes: Shapes of its tensors by name.
        model: The width of the texts in each of the model's cross-attentions, by the layer's name.

    Raises:
        ValueError: The widths differ; names both kinds and a shape.
    """
    made_for = of_file(shapes)
    layer, wanted = next(iter(model), ("", 0))
    if made_for and wanted and made_for != wanted:
        raise ValueError(
            f"It was made for {_name(made_for)}: its cross-attentions read texts of width {made_for}, those of this "
            f"model, {_name(wanted)}, read {wanted} ({layer}). Take a file for this kind of model, or load the model "
            "that it was made for."
        )


def _name(found: int) -> str:
    return _NAMES.get(found, "another kind of model")
