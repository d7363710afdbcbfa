# SPDX-License-Identifier: Apache-2.0
"""One random LoRA of a tiny model in every dialect, and the same as ComfyUI's stock loader reads it.

`written(model, dialect)` gives the file's tensors and those for the oracle. Dialects that ComfyUI does not read are
converted for the oracle by diffusers' own function, or by hand.
"""

import torch

UNET = (
    "generic",
    "core",
    "kohya ldm",
    "kohya diffusers",
    "diffusers processor",
    "diffusers old",
    "diffusers peft",
    "doubled unet",
    "peft",
    "peft default",
)
TRANSFORMER = ("generic", "kohya ldm", "transformer", "onetrainer")
ENDS = {
    "diffusers old": (".lora.up.weight", ".lora.down.weight"),
    "diffusers processor": ("_lora.up.weight", "_lora.down.weight"),
    "doubled unet": ("_lora.up.weight", "_lora.down.weight"),
    "diffusers peft": (".lora_B.weight", ".lora_A.weight"),
    "peft": (".lora_B.weight", ".lora_A.weight"),
    "peft default": (".lora_B.default.weight", ".lora_A.default.weight"),
    "transformer": (".lora_B.weight", ".lora_A.weight"),
}
KOHYA = (".lora_up.weight", ".lora_down.weight")


def diffusers_names(model) -> dict[str, object]:
    """The host's place by the dotted diffusers name of every weight that has one."""
    import comfy.model_base
    import comfy.utils

    config = model.model.model_config.unet_config
    if isinstance(model.model, comfy.model_base.SD3):
        names = comfy.utils.mmdit_to_diffusers(config, output_prefix="")
    elif isinstance(model.model, comfy.model_base.Flux):
        names = comfy.utils.flux_to_diffusers(config, output_prefix="")
    else:
        names = comfy.utils.unet_to_diffusers(config)
    there = model.model.diffusion_model.state_dict()  # the map has names of larger models, too
    found, seen = {}, set()
    for key, at in names.items():
        weight, offset = (at, None) if isinstance(at, str) else at[:2]
        # The map may have several names for one place, and a file has one of them.
        if weight in there and weight.endswith(".weight") and (weight, offset) not in seen:
            seen.add((weight, offset))
            found[key.removesuffix(".weight")] = at
    return found


def pair(model, at, generator, rank=4):
    """Random factors for a whole weight or a part of it; their change is about a third of the weight's size."""
    key, offset = (at, None) if isinstance(at, str) else (at[0], at[1])
    weight = model.model.diffusion_model.get_parameter(key)
    rows = weight.shape[0] if offset is None else offset[2]
    ones = (1,) * (weight.ndim - 2)
    down = torch.randn((rank, *weight.shape[1:]), generator=generator)
    up = torch.randn((rows, rank, *ones), generator=generator)
    return 0.1 * up, down / down[0].numel() ** 0.5


def layers(model, dialect):
    """The file's name of each layer, the place of it, and a plain kohya name for the oracle."""
    from graft.adapters.targets import kind

    named = diffusers_names(model)
    root = model.model.diffusion_model
    if dialect in ("generic", "core", "kohya ldm"):
        for name, module in root.named_modules():
            if kind(module):
                flat = f"lora_unet_{name.replace('.', '_')}"
                shown = flat if dialect == "kohya ldm" else f"diffusion_model.{name}"
                yield shown, f"{name}.weight", shown
        return
    for name, at in named.items():
        key = at if isinstance(at, str) else at[0]
        if not kind(root.get_submodule(key.removesuffix(".weight"))):
            continue
        flat = name.replace(".", "_")
        if dialect == "kohya diffusers":
            yield f"lora_unet_{flat}", at, f"lora_unet_{flat}"
        elif dialect in ("diffusers processor", "doubled unet"):
            if ".to_" in name:
                shown = name.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out")
                prefix = "unet." if dialect == "diffusers processor" else "unet.unet."
                yield f"{prefix}{shown}", at, f"lora_unet_{flat}"
        elif dialect in ("diffusers old", "diffusers peft"):
            yield f"unet.{name}", at, f"lora_unet_{flat}"
        elif dialect.startswith("peft"):
            yield f"base_model.model.{name}", at, f"lora_unet_{flat}"
        elif dialect == "transformer":
            yield f"transformer.{name}", at, f"transformer.{name}"
        elif dialect == "onetrainer":
            yield f"lora_transformer_{flat}", at, f"lora_transformer_{flat}"


def written(model, dialect, seed=3):
    """The tensors of a file, and of one with the same changes for ComfyUI's own loader."""
    generator = torch.Generator().manual_seed(seed)
    ends = ENDS.get(dialect, KOHYA)
    has_alpha = ends is KOHYA
    file, oracle = {}, {}
    for shown, at, kohya in layers(model, dialect):
        up, down = pair(model, at, generator)
        if dialect == "core":  # it flattens convolutions, and keeps half precision
            up, down = up.flatten(1).bfloat16(), down.flatten(1).bfloat16()
            file[f"{shown}.diff_b"] = torch.zeros(len(up))
        file |= {f"{shown}{ends[0]}": up, f"{shown}{ends[1]}": down}
        oracle |= {f"{kohya}{KOHYA[0]}": up, f"{kohya}{KOHYA[1]}": down}
        if has_alpha:
            alpha = torch.tensor(3.0)
            file[f"{shown}.alpha"] = oracle[f"{kohya}.alpha"] = alpha
    return file, oracle


def patched(model, tensors):
    """The model's weights after ComfyUI's own Load LoRA, fp32, by module."""
    import comfy.lora
    import comfy.sd

    after = comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 0.0)[0]
    weights = {}
    for key, patches in after.patches.items():
        base = model.model.state_dict()[key].detach().clone()
        made = comfy.lora.calculate_weight(patches, base.float(), key)
        weights[key.removeprefix("diffusion_model.").removesuffix(".weight")] = made
    return weights
