# SPDX-License-Identifier: Apache-2.0
"""Files to tensors to adapters and back."""
