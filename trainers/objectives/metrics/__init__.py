# SPDX-License-Identifier: Apache-2.0
"""Penalties of the residual, one file each."""
