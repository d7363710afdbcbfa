# SPDX-License-Identifier: Apache-2.0
"""A MODEL without its weights: what the host would make of a file, from the file's header alone.

All layers are there with their names and sizes on the device ``meta``, which holds no numbers; nothing of it can be
run. Its noise levels are real.
"""

import atexit
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...plain import plain
from ...registry import unknown
from ...safetensors_header import Header, read_header
from . import mini

LISTS = {"checkpoint": "checkpoints", "unet": "diffusion_models"}
SOURCES = (*LISTS, "mini", "family")
SUFFIX = ".safetensors"
_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
_SD: dict[str, Any] = _UNET | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "adm_in_channels": None,
}
_SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "adm_in_channels": 2048,
    "pos_embed_scaling_factor": None,
}
_CONTEXT = "context_embedder_config"
# What each family is called, the host's class for it, and its network's settings.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "SD 1.5": (
        "SD15",
        _SD | {"use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8},
    ),
    "SD 2": (
        "SD20",
        _SD | {"use_linear_in_transformer": True, "context_dim": 1024, "num_head_channels": 64},
    ),
    "SDXL": (
        "SDXL",
        _UNET
        | {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
            "context_dim": 2048,
            "num_head_channels": 64,
        },
    ),
    "SD 3 medium": (
        "SD3",
        _SD3
        | {
            "depth": 24,
            "num_patches": 36864,
            "pos_embed_max_size": 192,
            "qk_norm": None,
            "x_block_self_attn_layers": [],
            _CONTEXT: {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 1536},
            },
        },
    ),
    "SD 3.5 large": (
        "SD3",
        _SD3
        | {
            "depth": 38,
            "num_patches": 36864,
            "pos_embed_max_size": 192,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [],
            _CONTEXT: {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 2432},
            },
        },
    ),
    "Flux": (
        "Flux",
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 768,
            "context_in_dim": 4096,
            "hidden_size": 3072,
            "mlp_ratio": 4.0,
            "num_heads": 24,
            "depth": 19,
            "depth_single_blocks": 38,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": True,
        },
    ),
}
_KEPT = 4
_made: "OrderedDict[tuple[str, ...], Any]" = OrderedDict()
_lock = threading.Lock()
atexit.register(
    _made.clear
)  # what the host does when a ModelPatcher goes needs modules that are gone later


def skeleton(source: str, name: str = "") -> Any:
    """The MODEL of a loader without its weights; the last few are kept.

    Args:
        source: One of ``SOURCES``.
        name: A file of the host's list, or one of ``FAMILIES``; nothing for mini.

    Returns:
        A ModelPatcher, whose network is on the device ``meta``.

    Raises:
        ValueError: There is no such file or family, or the host makes nothing of it.
    """
    if source not in SOURCES:
        raise ValueError(unknown("source", str(source), SOURCES))
    path = _path(source, name) if source in LISTS else None
    key: tuple[str, ...] = (source, str(name))
    if path is not None:
        told = path.stat()
        key = (*key, str(path), str(told.st_size), str(told.st_mtime_ns))
    with _lock:
        if key in _made:
            _made.move_to_end(key)
            return _made[key]
        made = _of_file(path) if path is not None else _of_mini() if source == "mini" else _of(name)
        _made[key] = made
        while len(_made) > _KEPT:
            _made.popitem(last=False)
        return made


def title(model: Any) -> str:
    """What the host calls a MODEL's family."""
    return type(model.model.model_config).__name__


def _path(source: str, name: str) -> Path:
    """The file of a name in the host's list; a name that is not in the list is no path."""
    import folder_paths

    folder = LISTS[source]
    known = folder_paths.get_filename_list(folder)
    if name not in known:
        raise ValueError(unknown(f"file of {folder}", str(name), known))
    if not name.lower().endswith(SUFFIX):
        raise ValueError(
            f"The layout of '{plain(name, 100)}' cannot be told before it is loaded: only {SUFFIX} files can be looked "
            "into. Choose the family of the model."
        )
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        raise ValueError(f"'{plain(name, 100)}' is gone. Press R for the files that are there.")
    return Path(found)


def _of_file(path: Path) -> Any:
    from comfy import model_detection, utils

    header = read_header(path)
    tensors = {name: _empty(name, header) for name in header.tensors}
    prefix = model_detection.unet_prefix_from_state_dict(tensors)
    state = utils.state_dict_prefix_replace(dict(tensors), {prefix: ""}, filter_keys=True)
    metadata = dict(header.metadata)
    config = _detected(state, metadata)
    if config is None:
        state = tensors
        config = _detected(state, metadata)
    if config is None:
        state = _mmdit(tensors)
        config = _detected(state, metadata)
    if config is None:
        config = model_detection.model_config_from_diffusers_unet(tensors)
    if config is None:
        raise ValueError(
            f"ComfyUI finds no diffusion model that it knows in '{plain(path.name, 100)}', or it is of a kind of which "
            "the header does not say enough. Choose the family of the model."
        )
    return _built(config, state)


def _empty(name: str, header: Header) -> torch.Tensor:
    place = header.tensors[name]
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "U8": torch.uint8}
    return torch.empty(place.shape, dtype=kinds.get(place.dtype, torch.bfloat16), device="meta")


def _mmdit(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of diffusers' transformers as the host's own; empty where they are none."""
    from comfy import model_detection

    return model_detection.convert_diffusers_mmdit(dict(tensors)) or {}


def _detected(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> Any:
    """The host's configuration; None where it knows none, or wants numbers that are not there."""
    from comfy import model_detection

    if not state:
        return None
    try:
        return model_detection.model_config_from_unet(dict(state), "", metadata=metadata)
    except (KeyError, IndexError, RuntimeError, NotImplementedError, AttributeError, TypeError):
        return None


def _of_mini() -> Any:
    return _built(mini.mini_config(), {})


def _of(name: str) -> Any:
    import comfy.ldm.flux.model
    from comfy import supported_models

    if name not in FAMILIES:
        raise ValueError(unknown("family", str(name), FAMILIES))
    kind, settings = FAMILIES[name]
    config = dict(settings)
    fields = getattr(comfy.ldm.flux.model.FluxParams, "__dataclass_fields__", {})
    if kind == "Flux" and "txt_ids_dims" in fields:
        config["txt_ids_dims"] = []
    return _built(getattr(supported_models, kind)(config), {})


def _built(config: Any, state: dict[str, torch.Tensor]) -> Any:
    import comfy.model_patcher
    import comfy.ops
    from comfy import model_base

    config.custom_operations = comfy.ops.disable_weight_init
    config.set_inference_dtype(torch.bfloat16, None)
    kind = _prediction(config, state)
    config.model_type = lambda *_: kind
    with torch.inference_mode(False), torch.no_grad():
        with torch.device("meta"):
            model = config.get_model(state, "", device=torch.device("meta"))
        model.model_sampling = model_base.model_sampling(config, model.model_type)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _prediction(config: Any, state: dict[str, torch.Tensor]) -> Any:
    """What the network predicts; eps where the host asks the weights for it, which SD 2 is made of as a rule."""
    from comfy import model_base

    try:
        return config.model_type(state, "")
    except (RuntimeError, NotImplementedError):
        return model_base.ModelType.EPS
