# SPDX-License-Identifier: Apache-2.0
"""Promises about what is seen in the browser."""
