# SPDX-License-Identifier: Apache-2.0
"""A custom node that lets the stock `CheckpointLoaderSimple` load assets/graft-mini.safetensors.

Put this file (or a link to it) into custom_nodes of a test server that also has the pack.
"""

import importlib.util
from pathlib import Path

NODE_CLASS_MAPPINGS = {}


def _find_mini():
    here = Path(__file__)
    candidates = [
        here.resolve().parents[2] / "host" / "model" / "mini.py",
        *sorted(here.parent.glob("*/host/model/mini.py")),
    ]
    return next(path for path in candidates if path.is_file())


def register():
    """Add the miniature configuration to ComfyUI's supported models, once."""
    from comfy import supported_models

    if any(config.__name__ == "GraftMini" for config in supported_models.models):
        return
    spec = importlib.util.spec_from_file_location("graft_mini_for_tests", _find_mini())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    supported_models.models.append(module.mini_config_class())


register()
