# SPDX-License-Identifier: Apache-2.0
"""Reports and studies of what was trained."""
