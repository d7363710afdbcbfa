# SPDX-License-Identifier: Apache-2.0
"""Whether a MODEL has the blocks that a recipe is about."""

from typing import Any

from ...adapters.targets import targets


def check_b_lora(model: Any) -> None:
    """Refuse a MODEL without the two blocks of B-LoRA (Frenkel et al. 2024; arXiv 2403.14572).

    Args:
        model: The host's ModelPatcher.

    Raises:
        ValueError: It is not of SDXL's layout; says what to do instead.
    """
    base = model.model
    for preset in ("b-lora content", "b-lora style"):
        try:
            targets(base.diffusion_model, preset)
        except ValueError as error:
            kind = type(base.model_config).__name__
            raise ValueError(
                f"B-LoRA trains two blocks of SDXL, output_blocks.0.1 and output_blocks.1.1; this MODEL ({kind}) has "
                "no attention there. Connect an SDXL model, or train blocks of this one with Train LoRA, whose widget "
                "blocks takes patterns of the model's own layers."
            ) from error
