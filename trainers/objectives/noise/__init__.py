# SPDX-License-Identifier: Apache-2.0
"""Noise laws, one file each."""
