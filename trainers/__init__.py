# SPDX-License-Identifier: Apache-2.0
"""The trainer: pure torch over a Denoiser, without ComfyUI."""
