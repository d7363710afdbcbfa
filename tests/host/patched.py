# SPDX-License-Identifier: Apache-2.0
"""A tiny MODEL with the patches of the host's own nodes; as a script, their digests: `python -m tests.host.patched`.

Import this module anywhere: it imports the host inside its functions only.
"""

import json
import sys
from pathlib import Path
from typing import Any

if "tests.host" not in sys.modules:  # as a script: make ComfyUI, the pack and `tests` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FREEU = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
TILES = {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}
SHRINK = {
    "block_number": 1,
    "downscale_factor": 2.0,
    "start_percent": 0.0,
    "end_percent": 0.35,
    "downscale_after_skip": True,
    "downscale_method": "bicubic",
    "upscale_method": "bicubic",
}
CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
# Module in comfy_extras, class, what it is given, and what one of these may be instead.
NODES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "freeu": ("nodes_freelunch", "FreeU", FREEU, {"s2": 0.3}),
    "freeu 2": ("nodes_freelunch", "FreeU_V2", FREEU, {"b1": 1.2}),
    "hypertile": ("nodes_hypertile", "HyperTile", TILES, {"max_depth": 1}),
    "pag": ("nodes_pag", "PerturbedAttentionGuidance", {"scale": 3.0}, {"scale": 2.0}),
    "sag": (
        "nodes_sag",
        "SelfAttentionGuidance",
        {"scale": 0.5, "blur_sigma": 2.0},
        {"scale": 1.0},
    ),
    "tome": ("nodes_tomesd", "TomePatchModel", {"ratio": 0.3}, {"ratio": 0.5}),
    "shrink": ("nodes_model_downscale", "PatchModelAddDownscale", SHRINK, {"block_number": 2}),
    "rescale": ("nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}, {"multiplier": 0.5}),
    "sampling": (
        "nodes_model_advanced",
        "ModelSamplingDiscrete",
        {"sampling": "v_prediction", "zsnr": False},
        {"sampling": "x0"},
    ),
    "cache": ("nodes_easycache", "EasyCacheNode", CACHE, {"reuse_threshold": 0.3}),
}


def patched(name: str, model: Any, is_other: bool = False) -> Any:
    """``model`` with the patches of a node of ``NODES``, or with another value of one of its settings."""
    import importlib

    where, kind, given, other = NODES[name]
    node = getattr(importlib.import_module(f"comfy_extras.{where}"), kind)
    values = given | (other if is_other else {})
    call = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
    made = call(model, **values)
    return getattr(made, "result", made)[0]


def digests(model: Any) -> dict[str, str]:
    """The digest of a model by the node that patched it, and of the model itself."""
    from graft.host.runs import identity

    found = {name: identity.model_digest(patched(name, model)) for name in NODES}
    return found | {"": identity.model_digest(model)}


if __name__ == "__main__":
    from tests.host import inprocess

    inprocess.start()
    from tests.host import tiny

    print(json.dumps(digests(tiny.model("sdxl"))))
