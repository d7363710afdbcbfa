# SPDX-License-Identifier: Apache-2.0
"""Guidance: what a picture should become more like while it is sampled, written over D(x; sigma)."""

from . import courses, losses
from .gradient import change, slope
from .parts import COURSES, LOSSES, Course, Loss, Seen, Target, Term
from .steps import Step, Steps

COURSES.discover(courses.__path__, courses.__name__)
LOSSES.discover(losses.__path__, losses.__name__)

__all__ = [
    "COURSES",
    "LOSSES",
    "Course",
    "Loss",
    "Seen",
    "Step",
    "Steps",
    "Target",
    "Term",
    "change",
    "slope",
]
