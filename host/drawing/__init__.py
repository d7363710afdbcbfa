# SPDX-License-Identifier: Apache-2.0
"""Numbers as pictures, drawn with Pillow."""
