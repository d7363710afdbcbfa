# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the host's own classes, seeded, in the families that training has to know.

`model("sdxl")` is a MODEL, `clip("sdxl")` a CLIP, `vae("sdxl")` a VAE, `conditioning("sdxl")` a CONDITIONING.
By default they are made under inference mode, as ComfyUI's loader nodes leave them. Import this module anywhere:
it imports the host inside its functions only.
"""

import torch

FAMILIES = ("sd15", "sdxl", "sdxl_v", "sdxl_zsnr", "sdxl_edm", "sd3", "flux")
CLIP_SIZES = {"l": (32, 4), "g": (64, 4), "sd15": (48, 4), "sd3": (64, 4)}  # width, heads
CONTEXT = {"sd15": 48, "sdxl": 96, "sd3": 64, "flux": 64}
POOLED = {"sd15": 48, "sdxl": 64, "sd3": 64, "flux": 32}
MARKS = {
    "sdxl_v": {"v_pred": torch.empty(0)},
    "sdxl_zsnr": {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)},
    "sdxl_edm": {"edm_mean": torch.empty(0), "edm_std": torch.empty(0)},
}


def kind(family: str) -> str:
    """The layout of a family: sd15, sdxl, sd3 or flux."""
    return family.split("_")[0]


def latent_channels(family: str) -> int:
    return 4 if kind(family) in ("sd15", "sdxl") else 16


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Fill every parameter: no layer is zero, so that every layer has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim < 2:
                is_scale = name.endswith(("weight", "scale")) and p.numel() > 1
                value = 1 + 0.1 * noise if is_scale else 0.1 * noise
            elif "embedding" in name:
                value = noise
            else:
                value = noise / (p[0].numel() ** 0.5)
            p.copy_(value.to(p.dtype))
        for name, b in module.named_buffers():
            if name.endswith("pos_embed"):
                b.copy_(0.1 * torch.randn(b.shape, generator=generator).to(b.dtype))


def _unet_config(family: str) -> dict:
    shared = {
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth_middle": 1,
        "context_dim": CONTEXT[kind(family)],
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }
    if kind(family) == "sd15":
        return shared | {
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
        }
    if kind(family) == "sdxl":
        return shared | {
            "transformer_depth": [0, 2],
            "transformer_depth_output": [0, 0, 2, 2],
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": POOLED["sdxl"] + 6 * 256,
        }
    if kind(family) == "sd3":
        return {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": POOLED["sd3"],
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": CONTEXT["sd3"], "out_features": 128},
            },
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [],
        }
    return {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED["flux"],
        "context_in_dim": CONTEXT["flux"],
        "hidden_size": 64,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 14, 14],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }


def _model_config(family: str):
    import comfy.ldm.flux.model
    import comfy.supported_models

    names = {"sd15": "SD15", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux"}
    config = _unet_config(family)
    fields = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
    if kind(family) == "flux" and "txt_ids_dims" in fields:
        config["txt_ids_dims"] = []
    return getattr(comfy.supported_models, names[kind(family)])(config)


def model(
    family: str = "sdxl",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    inference: bool = True,
):
    """A MODEL: the host's patcher around a tiny model of the family, with random weights."""
    import comfy.model_management as mm
    import comfy.model_patcher

    device = mm.get_torch_device()
    offload = mm.unet_offload_device()
    with torch.inference_mode(inference):
        config = _model_config(family)
        config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, device))
        made = config.get_model(dict(MARKS.get(family, {})), "", device=offload)
        randomize(made.diffusion_model, seed)
        made.diffusion_model.requires_grad_(False)
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        return patcher(made, load_device=device, offload_device=offload)


def clip(family: str = "sdxl", *, seed: int = 1, inference: bool = True):
    """A CLIP with the host's tokenizer: `sdxl` (two encoders), or one, of the family's width."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models_base

    def settings(width: int, heads: int) -> dict:
        return {
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "projection_dim": width,
        }

    if kind(family) == "sdxl":
        parts = (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
        options = {
            "clip_l_model_config": settings(*CLIP_SIZES["l"]),
            "clip_g_model_config": settings(*CLIP_SIZES["g"]),
        }
    else:
        parts = (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
        options = {"clip_l_model_config": settings(*CLIP_SIZES[kind(family)])}
    with torch.inference_mode(inference):
        target = comfy.supported_models_base.ClipTarget(*parts)
        made = comfy.sd.CLIP(target, model_options=options | {"dtype": torch.float32})
        randomize(made.cond_stage_model, seed)
        return made


def vae(family: str = "sdxl", *, seed: int = 2, inference: bool = True):
    """A VAE in TAESD format (8 x 8 pixels a latent pixel) with the family's channels."""
    import comfy.sd
    import comfy.taesd.taesd

    with torch.inference_mode(inference):
        made = comfy.taesd.taesd.TAESD(latent_channels=latent_channels(family))
        randomize(made, seed)
        made.vae_scale.fill_(1.0)
        return comfy.sd.VAE(sd=made.state_dict())


def kl_vae(*, seed: int = 2, inference: bool = True):
    """A VAE with mean and log variance (AutoencoderKL, 8 x 8 pixels a latent pixel, 4 channels)."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    config = {"params": {"ddconfig": sizes, "embed_dim": 4}}
    with torch.inference_mode(inference):
        made = AutoencoderKL(**config["params"])
        randomize(made, seed)
        return comfy.sd.VAE(sd=made.state_dict(), config=config)


def conditioning(family: str = "sdxl", *, tokens: int = 7, seed: int = 3, **extra) -> list:
    """A CONDITIONING of random numbers with the family's widths."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn((1, tokens, CONTEXT[kind(family)]), generator=generator)
    pooled = torch.randn((1, POOLED[kind(family)]), generator=generator)
    return [[text, {"pooled_output": pooled} | extra]]


def latent(family: str = "sdxl", *, batch: int = 1, height: int = 8, width: int = 8, seed: int = 4):
    """Random latents ``[batch, C, height, width]`` in the units of the model."""
    shape = (batch, latent_channels(family), height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(
    patcher, family: str, *, steps: int = 2, cfg: float = 2.0, seed: int = 5, inference: bool = True
) -> torch.Tensor:
    """Sample by `comfy.sample` as the KSampler node does; returns latents ``[1, C, 8, 8]``."""
    import comfy.sample

    with torch.inference_mode(inference):
        empty = torch.zeros_like(latent(family))
        noise = comfy.sample.prepare_noise(empty, seed)
        return comfy.sample.sample(
            patcher,
            noise,
            steps,
            cfg,
            "euler",
            "normal",
            conditioning(family),
            conditioning(family, seed=6),
            empty,
            disable_pbar=True,
            seed=seed,
        ).clone()


class Attached:
    """Plain low-rank adapters on every linear and convolution layer, by replaced forwards."""

    def __init__(
        self, network: torch.nn.Module, *, rank: int = 2, seed: int = 7, dropout: float = 0.0
    ):
        generator = torch.Generator().manual_seed(seed)
        self.parameters: list[torch.Tensor] = []
        self._modules: list[torch.nn.Module] = []
        for name, module in network.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or weight.ndim not in (2, 4) or "embedding" in name:
                continue
            with torch.inference_mode(False):
                down = torch.randn((rank, *weight.shape[1:]), generator=generator)
                up = torch.randn((weight.shape[0], rank), generator=generator)
                pair = [0.1 * down / down[0].numel() ** 0.5, 0.1 * up]
                pair = [p.to(weight.device).requires_grad_() for p in pair]
            self.parameters += pair
            self._modules.append(module)
            module.forward = _low_rank(module, *pair, dropout)

    def remove(self) -> None:
        for module in self._modules:
            del module.forward

    def gradients(self) -> list[torch.Tensor | None]:
        out = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return out


def _low_rank(module, down, up, dropout):
    functional = torch.nn.functional
    forward = module.forward

    def low_rank(x, *args, **kwargs):
        y = forward(x, *args, **kwargs)
        h = functional.dropout(x.to(down.dtype), dropout)
        if down.ndim == 2:
            h = functional.linear(functional.linear(h, down), up)
        else:
            h = functional.conv2d(h, down, None, module.stride, module.padding)
            h = functional.conv2d(h, up[:, :, None, None])
        return y + h.to(y.dtype)

    return low_rank
