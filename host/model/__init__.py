# SPDX-License-Identifier: Apache-2.0
"""The MODEL on the wire: made trainable, denoising, given back as it was."""
