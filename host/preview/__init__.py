# SPDX-License-Identifier: Apache-2.0
"""Pictures that a run draws while it trains."""
