# SPDX-License-Identifier: Apache-2.0
"""Figures of data: how soon a second run starts, what many pictures cost, what a step's data cost."""
