# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules, one file each.

Each is diffusers' ``get_scheduler`` of that name, read at the end of a step: the factor of ``step``
(from 0) of ``total`` with ``warmup`` is the library's at ``step + 1`` with a warm-up of ``warmup + 1``.
So the first step is not lost at a rate of 0, and the last one has the end value.
"""
