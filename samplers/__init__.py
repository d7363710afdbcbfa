# SPDX-License-Identifier: Apache-2.0
"""Samplers and their noise levels, over D(x; sigma) only: one small file each."""

from . import schedules
from .loop import check, checked, evaluations, sample
from .noise import KeyedNoise
from .parts import SAMPLERS, SCHEDULES, Levels, Sampler, Schedule, Step, Stepped
from .schedules.course import course

SAMPLERS.discover(__path__, __name__)
SCHEDULES.discover(schedules.__path__, schedules.__name__)

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "KeyedNoise",
    "Levels",
    "Sampler",
    "Schedule",
    "Step",
    "Stepped",
    "check",
    "checked",
    "course",
    "evaluations",
    "sample",
]
