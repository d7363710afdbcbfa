# SPDX-License-Identifier: Apache-2.0
"""Numbers that say whether training worked."""
