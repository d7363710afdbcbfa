# SPDX-License-Identifier: Apache-2.0
"""One-way analysis of variance: does what something is grouped by matter?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Anova:
    """What was found.

    Attributes:
        f: The F statistic, variance between the groups over that within; nan where it is not defined.
        p: How likely so large an F is when all groups have one mean.
        freedom: Degrees of freedom between and within.
        means: Of the groups.
    """

    f: float
    p: float
    freedom: tuple[int, int]
    means: Mapping[str, float]

    @property
    def text(self) -> str:
        """``F(3, 14) = 11.9, p = 0.0003``."""
        return f"F({self.freedom[0]}, {self.freedom[1]}) = {self.f:.3g}, p = {self.p:.2g}"


def one_way(groups: Mapping[str, Sequence[float]]) -> Anova:
    """One-way ANOVA by scipy.

    Args:
        groups: Observations by group; groups without any are left out.

    Raises:
        ValueError: There are fewer than two groups, or no more observations than groups.
    """
    from scipy.stats import f_oneway

    filled = {name: list(values) for name, values in groups.items() if len(values)}
    count = sum(map(len, filled.values()))
    if len(filled) < 2 or count <= len(filled):
        raise ValueError(
            f"An analysis of variance needs two groups and more observations than groups; there are {len(filled)} "
            f"groups and {count} observations."
        )
    found = f_oneway(*filled.values())
    means = {name: fmean(values) for name, values in filled.items()}
    freedom = (len(filled) - 1, count - len(filled))
    return Anova(float(found.statistic), float(found.pvalue), freedom, means)
