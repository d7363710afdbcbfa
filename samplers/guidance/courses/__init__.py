# SPDX-License-Identifier: Apache-2.0
"""How the strength runs over the steps, one file each."""
