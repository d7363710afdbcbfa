# SPDX-License-Identifier: Apache-2.0
"""graft-mini in ComfyUI: the miniature SDXL configuration and the loader that builds MODEL, CLIP and VAE.

The asset is a full checkpoint in SDXL's layout; it is built explicitly, because no ComfyUI detects so small a model.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

ASSET = Path(__file__).resolve().parents[2] / "assets" / "graft-mini.safetensors"
WIDTH = 64
UNET_CONFIG: dict[str, Any] = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "context_dim": 2 * WIDTH,
    "adm_in_channels": WIDTH + 1536,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
DETECTED = (
    "model_channels",
    "use_linear_in_transformer",
    "transformer_depth",
    "context_dim",
    "adm_in_channels",
    "use_temporal_attention",
)
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."


def clip_options() -> dict[str, dict[str, int]]:
    """`model_options` that make ComfyUI's SDXL text model a miniature."""
    config = {
        "num_hidden_layers": 3,
        "hidden_size": WIDTH,
        "num_attention_heads": 2,
        "intermediate_size": 4 * WIDTH,
        "projection_dim": WIDTH,
    }
    return {"clip_l_model_config": dict(config), "clip_g_model_config": dict(config)}


def mini_config_class() -> type:
    """The model configuration class, made from ComfyUI's own SDXL configuration.

    Registered among ComfyUI's supported models, it also lets the stock checkpoint loader read the asset.
    """
    from comfy import sdxl_clip, supported_models, supported_models_base

    class MiniClip(sdxl_clip.SDXLClipModel):
        """SDXL's text model with the miniature encoders."""

        def __init__(
            self,
            device: Any = "cpu",
            dtype: Any = None,
            model_options: dict[str, Any] | None = None,
        ) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                model_options={**(model_options or {}), **clip_options()},
            )

    class GraftMini(supported_models.SDXL):
        """SDXL in miniature."""

        unet_config = {key: UNET_CONFIG[key] for key in DETECTED}

        def clip_target(self, state_dict: Any = None) -> Any:
            return supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, MiniClip)

    return GraftMini


def mini_config() -> Any:
    """A fresh model configuration for the miniature UNet."""
    return mini_config_class()(dict(UNET_CONFIG))


def read_asset(path: Path | None = None) -> dict[str, Any]:
    """Read the checkpoint, and say what is wrong when it cannot be read.

    Args:
        path: Another file than the shipped one.

    Returns:
        Tensors by name, in SDXL's checkpoint layout.
    """
    import safetensors.torch

    path = path or ASSET
    if not path.is_file():
        raise FileNotFoundError(
            f"graft-mini is missing: {path.name} is not in {path.parent.name}/; reinstall the pack"
        )
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path.name} is a git-lfs pointer, not the model: run `git lfs pull`")
    try:
        state = safetensors.torch.load_file(str(path), device="cpu")
    except Exception as error:
        raise ValueError(
            f"{path.name} is damaged or cut off ({path.stat().st_size} bytes): {error}"
        ) from error
    for prefix in (UNET_PREFIX, VAE_PREFIX, "conditioner.embedders.0.", "conditioner.embedders.1."):
        if not any(name.startswith(prefix) for name in state):
            raise ValueError(
                f"{path.name} has no {prefix}* tensors: it is not a graft-mini checkpoint"
            )
    return state


def rebuild_model(path: Path | None = None, disable_dynamic: bool = False) -> Any:
    """Read the checkpoint again and build its MODEL anew, with weights of its own.

    Args:
        path: Another checkpoint of the same layout than the shipped one.
        disable_dynamic: What ComfyUI asks of its loaders; this MODEL is never dynamic.

    Returns:
        A MODEL without patches.
    """
    return _build_model(read_asset(path), path)


def _build_model(state: dict[str, Any], path: Path | None) -> Any:
    import comfy.model_patcher
    import comfy.utils
    from comfy import model_management

    config = mini_config()
    parameters = comfy.utils.calculate_parameters(state, UNET_PREFIX)
    stored = comfy.utils.weight_dtype(state, UNET_PREFIX)
    supported = list(config.supported_inference_dtypes)
    dtype = model_management.unet_dtype(
        model_params=parameters, supported_dtypes=supported, weight_dtype=stored
    )
    device = model_management.get_torch_device()
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device, supported))
    start_device = model_management.unet_inital_load_device(parameters, dtype)
    model = config.get_model(state, UNET_PREFIX, device=start_device)
    # Never the dynamic patcher: it has no copy to train on unless a core loader made it.
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=model_management.unet_offload_device()
    )
    # Newer hosts build the model again for a deep copy: their own trainer, several GPUs.
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (rebuild_model, (path,))
    model.load_model_weights(state, UNET_PREFIX)
    if start_device != model_management.torch.device("cpu"):
        model_management.load_models_gpu([patcher], force_full_load=True)
    return patcher


def _build_clip(state: dict[str, Any], embedding_directory: Any) -> Any:
    import comfy.sd
    import comfy.utils
    import torch

    config = mini_config()
    target = config.clip_target(state_dict=state)
    state = config.process_clip_state_dict(state)
    state["clip_l.transformer.text_projection.weight"] = torch.eye(WIDTH, dtype=torch.float16)
    options: dict[str, Any] = {"parameters": comfy.utils.calculate_parameters(state)}
    at_once = "state_dict" in inspect.signature(comfy.sd.CLIP.__init__).parameters
    if at_once:
        options["state_dict"] = state
    clip = comfy.sd.CLIP(
        target, embedding_directory=embedding_directory, tokenizer_data=state, **options
    )
    if not at_once:
        clip.load_sd(state, full_model=True)
    return clip


def load_mini(path: Path | None = None, embedding_directory: Any = None) -> tuple[Any, Any, Any]:
    """Build graft-mini from its asset.

    Args:
        path: Another checkpoint of the same layout than the shipped one.
        embedding_directory: Where prompts find `embedding:` files; ComfyUI's own when left out.

    Returns:
        MODEL, CLIP and VAE, as ComfyUI's checkpoint loader gives them.
    """
    import comfy.sd

    state = read_asset(path)
    vae_state = {
        name[len(VAE_PREFIX) :]: state[name] for name in state if name.startswith(VAE_PREFIX)
    }
    clip_state = {name: value for name, value in state.items() if name.startswith("conditioner.")}
    if embedding_directory is None:
        import folder_paths

        embedding_directory = folder_paths.get_folder_paths("embeddings")
    return (
        _build_model(state, path),
        _build_clip(clip_state, embedding_directory),
        comfy.sd.VAE(sd=vae_state),
    )
