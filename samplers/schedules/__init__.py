# SPDX-License-Identifier: Apache-2.0
"""Courses of noise levels, one file each."""
