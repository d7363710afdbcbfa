# SPDX-License-Identifier: Apache-2.0
"""Graft: fine-tune diffusion models inside the ComfyUI graph."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension; ComfyUI calls this once when it loads the pack."""
    from .nodes import GraftExtension

    return GraftExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
