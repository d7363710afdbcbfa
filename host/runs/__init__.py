# SPDX-License-Identifier: Apache-2.0
"""One run and those before it: events, states on disk, health, history."""
