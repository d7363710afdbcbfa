# SPDX-License-Identifier: Apache-2.0
"""Methods of inversion, one file each."""
