# SPDX-License-Identifier: Apache-2.0
"""Makes the example LoRAs of graft-mini in assets/loras, which have begun to learn the example shape.

    python -m tools.make_example_lora               both
    python -m tools.make_example_lora "dax as TOK"  one of them

`dax begun` has kohya's diffusers names and half precision, as files of other trainers have. `dax as TOK` bundles a new
word: TOK stands for the shape. Each takes a minute or two on two CPU cores.
"""

import dataclasses
import sys
import tempfile

from tests.host import inprocess

RANK, SEED = 4, 1
FOLDER = inprocess.ROOT / "assets" / "loras"
WORD, WORD_RATE = "TOK", 3e-3
# Steps, pictures a step, alpha, learning rate and layers.
EXAMPLES = {
    "dax begun": (120, 8, 2.0, 2e-3, "attention"),
    f"dax as {WORD}": (400, 12, 4.0, 3e-3, "all"),
}
_KEPT = (
    "ss_base_model_version",
    "ss_network_module",
    "modelspec.architecture",
    "modelspec.trigger_phrase",
)


def main() -> None:
    """Train, rename and write."""
    inprocess.start()
    import torch

    from graft.host.model import mini
    from graft.loaders import lora_file

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or EXAMPLES:
        with torch.inference_mode():
            wires = mini.load_mini()
            outcome = trained(name, wires)
        tensors = halved(wires[0], outcome.lora_model) | bundled(outcome.adapter.tensors)
        said = {k: v for k, v in outcome.adapter.metadata.items() if k in _KEPT}
        path = FOLDER / f"{name}.safetensors"
        lora_file.write(path, tensors, {**said, **lora_file.describe(tensors)})
        print(outcome.report)
        print(f"wrote {path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")


def trained(name, wires):
    """What the training of an example made."""
    import folder_paths

    from graft.adapters.lora import LoRA
    from graft.adapters.tokens import Concept, Tokens
    from graft.host import engine, graph
    from graft.trainers.data import Dataset, read_folder
    from graft.trainers.objectives import WEIGHTS, Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    (model, clip, vae), (steps, batch, alpha, rate, blocks) = wires, EXAMPLES[name]
    items, _ = read_folder(graph.picture_folder("graft-examples/shape"))
    optimizer, tokens, word = Optimizer(AdamW(rate)), None, "dax"
    if name.endswith(WORD):
        word, tokens = WORD, Tokens((Concept(WORD),))
        items = tuple(
            dataclasses.replace(i, captions=tuple(c.replace("dax", WORD) for c in i.captions))
            for i in items
        )
        optimizer = dataclasses.replace(
            optimizer, embedding_lr=WORD_RATE, embedding_stop=0.5, embedding_weight_decay=0.0
        )
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        request = engine.Request(
            model,
            Dataset(items, resolution=64, trigger=word, crops=8),
            vae,
            clip,
            network=LoRA(RANK, alpha, blocks),
            objective=Objective(weight=WEIGHTS.get("min-snr")(), preserve=0.0),
            optimizer=optimizer,
            plan=Plan(steps, batch_size=batch, seed=SEED),
            tokens=tokens,
            name=name,
        )
        return engine.train(request)


def halved(model, tensors):
    """A LoRA's tensors under kohya's names, factors in half precision."""
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


def bundled(tensors):
    """The new words of an adapter, as they are."""
    from graft.adapters.tokens import BUNDLE

    return {key: tensor for key, tensor in tensors.items() if key.startswith(BUNDLE)}


if __name__ == "__main__":
    main()
