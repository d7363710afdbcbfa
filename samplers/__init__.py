# SPDX-License-Identifier: Apache-2.0
"""Samplers and their noise levels, over D(x; sigma) only: one small file each."""
