# SPDX-License-Identifier: Apache-2.0
"""The CLIP on the wire: texts as a model's inputs, new words, text encoders that train."""
