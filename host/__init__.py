# SPDX-License-Identifier: Apache-2.0
"""The only room that talks to ComfyUI: models, text encoders, autoencoders, files, progress.

Modules import the host's packages inside their functions, so that importing this room costs nothing.
"""
