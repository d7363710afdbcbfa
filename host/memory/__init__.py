# SPDX-License-Identifier: Apache-2.0
"""What fits on the host's device, and what is done where it does not."""
