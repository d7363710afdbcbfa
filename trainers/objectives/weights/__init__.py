# SPDX-License-Identifier: Apache-2.0
"""Loss weights, one file each."""
