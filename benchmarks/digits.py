# SPDX-License-Identifier: Apache-2.0
"""A model that is trained from nothing on scikit-learn's digits: does a classifier read those that were asked for?

    python -m benchmarks.digits              train, or go on with a training that was cut off; then draw and count
    python -m benchmarks.digits --steps 300  ... with fewer steps
    python -m benchmarks.digits --page       ... and write what was measured into docs/digits.md

1797 digits of 8 x 8 px in ten classes, with the class left out of every tenth. The judge is a support vector machine
that learned every other real digit; its score on those it did not learn is shown beside.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, OUT = ROOT / "docs" / "digits.md", ROOT / "out" / "digits"
START, END = "<!-- made by `python -m benchmarks.digits --page` -->", "<!-- /made -->"
OF_EACH, DRAWN_IN, BOUND = 50, 20, 0.85
GUIDED = 2.0
BATCH, RATE, STEPS = 32, 2e-3, 600


def judge() -> tuple[Any, float]:
    """A classifier of real digits, and its share of right answers on those that it has not seen."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    data = load_digits()
    made = SVC(gamma=0.001, C=10.0).fit(data.data[::2], data.target[::2])
    return made, float(made.score(data.data[1::2], data.target[1::2]))


def dataset(count: int | None = None) -> Any:
    """The real digits with their classes, as the graph's dataset nodes make one."""
    import torch
    from sklearn.datasets import load_digits

    from graft.trainers.data import Captioning, Dataset, Item

    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[..., None].expand(-1, -1, -1, 3) / 16
    pairs = list(zip(pictures, data.target.tolist(), strict=True))[:count]
    items = tuple(Item((str(label),), pixels=pixels, label=label) for pixels, label in pairs)
    names = tuple(map(str, range(10)))
    return Dataset(items, resolution=8, captioning=Captioning(dropout=0.1), labels=names)


def new_model(width: int = 32) -> Any:
    """What New Pixel Diffusion makes."""
    import torch

    from graft.host.files import ddpm
    from graft.host.model.ddpm_settings import settings

    made = settings(
        size=8,
        channels=1,
        width=width,
        levels="1,2",
        layers=1,
        classes=10,
        unlabelled=True,
        schedule="linear",
        predicts="epsilon",
    )
    with torch.inference_mode():
        return ddpm.make(made, 0)


def train(model: Any, data: Any, steps: int, **plan: Any) -> Any:
    """What Train makes of it, with the network full."""
    from graft.adapters import NETWORKS
    from graft.host import engine
    from graft.trainers.optimizers import SCHEDULES, Optimizer
    from graft.trainers.optimizers.adamw import AdamW
    from graft.trainers.plan import Plan

    optimizer = Optimizer(algorithm=AdamW(lr=RATE), schedule=SCHEDULES.get("cosine")())
    return engine.train(
        engine.Request(
            model,
            data,
            network=NETWORKS.get("full")("all"),
            optimizer=optimizer,
            plan=Plan(**{"steps": steps, "batch_size": BATCH, **plan}),
            name="digits",
        )
    )


def drawn(model: Any, cfg: float, of_each: int = OF_EACH, steps: int = DRAWN_IN) -> Any:
    """Digits ``[N, 8, 8]`` in 0..16, ``of_each`` of every class in turn, as KSampler draws them."""
    import comfy.sample
    import torch

    from graft.host.model.ddpm_vae import pixel_vae
    from graft.host.text import labels

    with torch.inference_mode():
        asked = ",".join(map(str, range(10)))
        positive, negative, empty = labels.conditionings(model, asked, of_each, (0, 0))
        noise = comfy.sample.prepare_noise(empty, 0)
        given = (steps, cfg, "euler", "normal", positive, negative, empty)
        latents = comfy.sample.sample(model, noise, *given, disable_pbar=True, seed=0)
        return pixel_vae(1).decode(latents)[..., 0].float() * 16


def right(classifier: Any, digits: Any) -> float:
    """The share of digits that the judge reads as what was asked for."""
    import numpy as np

    wanted = np.repeat(np.arange(10), len(digits) // 10)
    return float((classifier.predict(digits.flatten(1).numpy()) == wanted).mean())


def sheet(digits: Any, path: Path) -> None:
    """Write the first digits of every class as a picture."""
    import torch
    from PIL import Image

    rows = digits.reshape(10, -1, 8, 8)[:, :16]
    grid = torch.cat([torch.cat(list(row), 1) for row in rows])
    pixels = (grid.clamp(0, 16) * 255 / 16).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).resize((pixels.shape[1] * 4, pixels.shape[0] * 4), 0).save(path)


def measure(steps: int) -> dict[str, Any]:
    """Train, draw and count."""
    import folder_paths

    folder_paths.set_output_directory(str(OUT))
    OUT.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    made = train(new_model(), dataset(), steps, autosave_every=100)
    seconds = time.perf_counter() - start
    classifier, real = judge()
    free, guided = (drawn(made.model, cfg) for cfg in (1.0, GUIDED))
    sheet(guided, OUT / "digits.png")
    return {
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "real digits": real,
        "drawn, cfg 1": right(classifier, free),
        f"drawn, cfg {GUIDED:g}": right(classifier, guided),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--page", action="store_true", help="write docs/digits.md")
    given = parser.parse_args(arguments)
    from tests.host import inprocess

    inprocess.start()
    import torch

    torch.set_num_threads(1)  # such small products are slower on several
    found = measure(given.steps)
    print(json.dumps(found, indent=2))
    if given.page:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        shares = {k: f"{v:.1%}" for k, v in found.items() if k not in ("steps", "minutes")}
        rows = [f"| {name} | {value} |" for name, value in (found | shares).items()]
        body = "\n".join(["| what | |", "|---|---:|", *rows])
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{START}\n{body}\n{END}{after}", encoding="utf-8", newline="\n")
    return 0 if found["drawn, cfg 1"] >= BOUND and found[f"drawn, cfg {GUIDED:g}"] >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
