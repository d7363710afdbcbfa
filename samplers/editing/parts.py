# SPDX-License-Identifier: Apache-2.0
"""What one edit is: a direction, how strongly, where and when."""

from dataclasses import dataclass

from ...registry import check_limits, option

BOTH, ATTENTION, DIFFERENCE, NONE = "both", "attention", "difference", "none"
ADD, REMOVE = "add", "remove"


@dataclass(frozen=True)
class Edit:
    """One edit of LEDITS++ (Brack et al. 2023; arXiv 2311.16711, section 4.2)."""

    direction: str = option(
        ADD,
        "add: the picture gets what the text says. remove: it loses it.",
        choices=(ADD, REMOVE),
    )
    scale: float = option(
        5.0, "How strongly; 0 is not at all. 3 to 10 as a rule.", min=0.0, max=100.0
    )
    threshold: float = option(
        0.9,
        "Share of the picture that is left alone, where the text means least: 0.9 edits a tenth of it, for a detail; "
        "0.6 is for an object, 0 edits all.",
        min=0.0,
        max=1.0,
    )
    mask: str = option(
        BOTH,
        "Where the picture is edited. attention: where the text's words are looked at, by the model's cross-attention. "
        "difference: where the text changes most. both: where both say so. none: everywhere.",
        choices=(BOTH, ATTENTION, DIFFERENCE, NONE),
    )
    start_percent: float = option(
        0.0, "Share of the steps that are done before the edit begins (warm-up).", min=0.0, max=1.0
    )
    end_percent: float = option(
        1.0, "Share of the steps that are done when the edit ends (cool-down).", min=0.0, max=1.0
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"start_percent is {self.start_percent:g} and end_percent is {self.end_percent:g}: the edit must begin "
                "before it ends."
            )

    @property
    def needs_attention(self) -> bool:
        """Whether its mask is of the model's cross-attention."""
        return self.mask in (BOTH, ATTENTION)

    def weight(self, progress: float) -> float:
        """What its direction is multiplied by, with its sign, at 0 <= progress < 1 of the steps; 0 where it rests."""
        if not self.start_percent <= progress < self.end_percent:
            return 0.0
        return -self.scale if self.direction == REMOVE else self.scale
