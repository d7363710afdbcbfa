# SPDX-License-Identifier: Apache-2.0
"""A run in a process of its own, to be killed: `python -m tests.host.killed OUTPUT`.

It trains a tiny model on data that vary, with everything on that a state has to carry, and saves a state after every
step, slowly, so that a kill often comes in the middle of a write. It says `step` at the beginning of each, and at the
end `done` with the hash of the LoRA.
"""

import sys
import time
from pathlib import Path

if "tests.host" not in sys.modules:  # as a script: make ComfyUI, the pack and `tests` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.host import inprocess

STEPS = 48
PAUSE_S = 0.01


def slow(write):
    """``write`` in pieces with pauses between them, as a slow disk has."""

    def slowly(path, tensors, metadata=None):
        write(path, tensors, metadata)
        data = path.read_bytes()
        quarter = len(data) // 4
        with path.open("wb") as file:
            for start in range(0, len(data), quarter):
                file.write(data[start : start + quarter])
                file.flush()
                time.sleep(PAUSE_S)

    return slowly


def announced(accumulate):
    """The loop's ``accumulate``, said before."""

    def announce(loop):
        print("step", flush=True)
        return accumulate(loop)

    return announce


def main(output: str) -> None:
    """Train, or go on training."""
    inprocess.start()
    import folder_paths
    import torch

    folder_paths.output_directory = output
    from graft.adapters.lora import LoRA
    from graft.host import engine
    from graft.loaders import lora_file
    from graft.trainers.loop import Loop
    from graft.trainers.objectives import Objective
    from graft.trainers.optimizers import Optimizer
    from graft.trainers.optimizers.prodigy import Prodigy
    from graft.trainers.optimizers.schedules.cosine import Cosine
    from graft.trainers.plan import Plan
    from tests.host import options, tiny

    torch.set_num_threads(1)
    lora_file.write = slow(lora_file.write)
    Loop._accumulate = announced(Loop._accumulate)
    with torch.inference_mode():
        request = engine.Request(
            tiny.model("sdxl"),
            options.varied(classes=options.class_pictures(), class_weight=0.5),
            tiny.kl_vae(),
            tiny.clip("sdxl"),
            network=LoRA(rank=2, blocks="attention"),
            objective=Objective(preserve=0.0, learn_log_variance=True),
            optimizer=Optimizer(Prodigy(), Cosine(), ema_decay=0.9),
            plan=Plan(STEPS, batch_size=2, accumulate=2, autosave_every=1, validate_every=5),
            validation=options.class_pictures(),
            name="killed",
        )
        made = engine.train(request)
    print("done", lora_file.data_hash(made.lora_model), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
