# SPDX-License-Identifier: Apache-2.0
"""Adapters in the dialects of other programs, and from these in our own names, bit for bit where a dialect can."""
