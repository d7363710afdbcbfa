# SPDX-License-Identifier: Apache-2.0
"""Makes assets/loras/dax begun.safetensors: a LoRA of graft-mini that has begun to learn the example shape.

    python -m tools.make_example_lora

It has kohya's diffusers names and half precision, as files of other trainers have; about a minute on two CPU cores.
"""

import tempfile

from tests.host import inprocess

STEPS, BATCH, RANK, ALPHA, RATE, SEED = 120, 8, 4, 2.0, 2e-3, 1
PATH = inprocess.ROOT / "assets" / "loras" / "dax begun.safetensors"


def main() -> None:
    """Train, rename and write."""
    inprocess.start()
    import folder_paths
    import torch

    from graft.adapters.lora import LoRA
    from graft.host import engine, graph
    from graft.host.model import mini
    from graft.loaders import lora_file
    from graft.trainers.data import Dataset, read_folder
    from graft.trainers.objectives import WEIGHTS, Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        model, clip, vae = mini.load_mini()
        items, _ = read_folder(graph.picture_folder("graft-examples/shape"))
        pictures = Dataset(items, resolution=64, trigger="dax", crops=8)
        request = engine.Request(
            model,
            pictures,
            vae,
            clip,
            network=LoRA(RANK, ALPHA, "attention"),
            objective=Objective(weight=WEIGHTS.get("min-snr")(), preserve=0.0),
            optimizer=Optimizer(AdamW(RATE)),
            plan=Plan(STEPS, batch_size=BATCH, seed=SEED),
            name="dax begun",
        )
        outcome = engine.train(request)
    tensors = renamed(model, outcome.lora_model)
    kept = (
        "ss_base_model_version",
        "ss_network_module",
        "modelspec.architecture",
        "modelspec.trigger_phrase",
    )
    metadata = {
        key: outcome.adapter.metadata[key] for key in kept if key in outcome.adapter.metadata
    }
    PATH.parent.mkdir(parents=True, exist_ok=True)
    lora_file.write(PATH, tensors, {**metadata, **lora_file.describe(tensors)})
    print(outcome.report)
    print(f"wrote {PATH.name}: {len(tensors)} tensors, {PATH.stat().st_size} bytes")


def renamed(model, tensors):
    """The tensors under kohya's names, factors in half precision."""
    import comfy.utils
    import torch

    names = {}
    for key, at in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items():
        if key.endswith(".weight"):
            names[at.removesuffix(".weight")] = key.removesuffix(".weight").replace(".", "_")
    made = {}
    for key, tensor in tensors.items():
        module, _, end = key.removeprefix("diffusion_model.").partition(".lora_")
        module, end = (module, f"lora_{end}") if end else (module.removesuffix(".alpha"), "alpha")
        half = tensor.to(torch.float16) if tensor.ndim else tensor
        made[f"lora_unet_{names[module]}.{end}"] = half
    return made


if __name__ == "__main__":
    main()
