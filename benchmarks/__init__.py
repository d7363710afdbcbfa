# SPDX-License-Identifier: Apache-2.0
"""Side by side against ComfyUI's own trainer, in one run."""
