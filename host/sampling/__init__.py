# SPDX-License-Identifier: Apache-2.0
"""Samplers, schedules and preconditionings of ours as the host's SAMPLER, SIGMAS and MODEL."""
