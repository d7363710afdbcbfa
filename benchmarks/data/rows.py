# SPDX-License-Identifier: Apache-2.0
"""The rows of `make figures TOPIC=data`: what the caches promise, measured on generated pictures.

What a first run encodes with is of no interest here, and slow: a mean over 8 x 8 pixels stands in for the network of
graft-mini's VAE, whose weights still are what the cache knows it by. A second run encodes nothing.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..first_step import at_first_step
from ..skeleton.rows import CODE, Bench, Measurement

PICTURES, PX = 500, 512
MANY, TINY_PX = 100_000, 16
MANY_MEMORY_BYTES = 2**24
STEPS = 300
MINUTE_NS = 60 * 10**9
FILES = (*CODE, "benchmarks/data/*.py", "benchmarks/first_step.py", "nodes/dataset.py")


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of its own that is the host's output folder, too."""
    import folder_paths

    before = folder_paths.output_directory
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder_paths.output_directory = made
        try:
            yield Path(made)
        finally:
            folder_paths.output_directory = before


@contextmanager
def quick(vae: Any) -> Iterator[list[int]]:
    """The VAE encodes by a mean over 8 x 8 pixels; counts the pictures."""
    counts = [0]

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        counts[0] += len(pixels)
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    vae.encode = encode
    try:
        yield counts
    finally:
        del vae.encode


def draw(where: Path, count: int, px: int) -> None:
    """Write PNG files of blurred noise, each another one, a minute old."""
    import numpy as np
    from PIL import Image

    where.mkdir(parents=True)
    random = np.random.default_rng(0)
    side = max(2, px // 16)
    for i in range(count):
        noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        path = where / f"{i:06}.png"
        Image.fromarray(noise).resize((px, px), Image.Resampling.BILINEAR).save(
            path, compress_level=1
        )
        age(path)


def age(path: Path) -> None:
    """Make a file a minute older than it is."""
    then = path.stat().st_mtime_ns - MINUTE_NS
    os.utime(path, ns=(then, then))


def start(wires: tuple[Any, Any, Any], where: Path) -> float:
    """Seconds from the reading of the folder to the first step."""
    from graft.host.engine import Request
    from graft.trainers.objectives import Objective
    from graft.trainers.plan import Plan

    begun = time.perf_counter()
    dataset = read(where)
    request = Request(
        wires[0], dataset, wires[2], wires[1], plan=Plan(1), objective=Objective(preserve=0.0)
    )
    return at_first_step(request, lambda loop: time.perf_counter() - begun)


def read(where: Path) -> Any:
    """The dataset of a folder, as its node reads it."""
    from graft.host.data.picture_index import Checks
    from graft.trainers.data import Dataset, read_folder

    checks = Checks(where.parent / "checks")
    items, warnings = read_folder(where, "a zork on a table", False, check=checks)
    checks.save()
    return Dataset(items, "zork", PX, "pictures", warnings)


def second_run(bench: Bench) -> dict[str, float]:
    """Start a run on 500 pictures, and again; then change one."""
    with folder() as made, quick(bench.wires[2]) as counts:
        where = made / "pictures"
        draw(where, PICTURES, PX)
        start(bench.wires, where)
        first = counts[0]
        seconds = sorted(start(bench.wires, where) for _ in range(3))[1]
        again = counts[0] - first
        (where / "000007.png").write_bytes((where / "000008.png").read_bytes())
        (where / "000009.png").unlink()
        draw(made / "more", 1, PX - 64)
        (made / "more" / "000000.png").replace(where / "000009.png")
        start(bench.wires, where)
        changed = counts[0] - first - again
    return {
        "second run starts (s)": seconds,
        "pictures that it encodes": again,
        "encoded after one new picture and one copy": changed,
    }


def many(bench: Bench) -> dict[str, float]:
    """Prepare 100,000 pictures, then read each in another order."""
    import psutil

    from graft.host.data.picture_index import Digests
    from graft.host.data.pictures import EncodedPictures
    from graft.trainers.data import Dataset, Item
    from graft.trainers.data.cache import Cache

    model, _, vae = bench.wires
    process = psutil.Process()
    with folder() as made, quick(vae) as counts:
        where = made / "pictures"
        draw(where, MANY, TINY_PX)
        before = process.memory_info().rss
        paths = [str(where / f"{i:06}.png") for i in range(MANY)]
        items = tuple(Item(("a zork",), path=path, size=(TINY_PX, TINY_PX)) for path in paths)
        dataset = Dataset(items, "zork", TINY_PX)

        def prepared() -> tuple[Any, float]:
            cache = Cache(made / "cache" / "latents", most_bytes=MANY_MEMORY_BYTES)
            begun = time.perf_counter()
            pictures = EncodedPictures(
                dataset, vae, model, cache, digests := Digests(made / "cache" / "files")
            )
            pictures.prepare(lambda total: lambda: None)
            digests.save()
            return pictures, time.perf_counter() - begun

        prepared()
        if counts[0] != MANY:
            raise RuntimeError(f"{counts[0]} of {MANY} pictures were encoded")
        pictures, seconds = prepared()
        ready = process.memory_info().rss
        for i in torch.randperm(MANY, generator=torch.Generator().manual_seed(0)).tolist():
            pictures.view(i, 0.0)
        after = process.memory_info().rss
    if counts[0] != MANY:
        raise RuntimeError("a second run encoded pictures")
    return {
        "memory of 100,000 pictures (MiB)": (ready - before) / 2**20,
        "and of reading each (MiB)": (after - ready) / 2**20,
        "100,000 pictures: second run starts (s)": seconds,
    }


def step(bench: Bench) -> dict[str, float]:
    """Milliseconds of a step's data: texts, views and latents by keyed draws, and the model's inputs."""
    from graft.host.data.picture_index import Digests
    from graft.host.data.pictures import EncodedPictures
    from graft.host.data.training_data import TrainingData
    from graft.host.text.conditioning import Conditioner
    from graft.host.text.texts import EncodedTexts
    from graft.trainers.data import Captioning, Dataset, Framing, Item
    from graft.trainers.data.cache import Cache
    from graft.trainers.random import Draws

    model, clip, vae = bench.wires
    generator = torch.Generator().manual_seed(0)
    items = tuple(
        Item((f"a zork, red, blue, {i}",), pixels=torch.rand(64, 64, 3, generator=generator))
        for i in range(16)
    )
    how = {"captioning": Captioning(shuffle=True, dropout=0.1), "framing": Framing(flip=True)}
    dataset = Dataset(items, "zork", 64, **how)
    with folder() as made, quick(vae), torch.inference_mode(False):
        pictures = EncodedPictures(dataset, vae, model, Cache(made / "latents"), Digests())
        pictures.prepare(lambda total: lambda: None)
        texts = EncodedTexts(clip, Cache(made / "texts"))
        every = [text for i in range(len(items)) for text in dataset.texts(i)]
        texts.prepare(every, lambda total: lambda: None)
        data = TrainingData(pictures, (), texts, Conditioner(model, "cpu"), torch.device("cpu"))
        seconds = []
        for number in range(STEPS):
            begun = time.perf_counter()
            list(data.batches([number % 16], Draws(0, number, range(1), 1)))
            seconds.append(time.perf_counter() - begun)
    return {"data of a step (ms)": 1000 * sorted(seconds[STEPS // 2 :])[STEPS // 4]}


MEASUREMENTS = (
    Measurement(
        "start",
        {
            "second run starts (s)": "<= 2",
            "pictures that it encodes": "<= 0",
            "encoded after one new picture and one copy": "<= 1",
        },
        FILES,
        second_run,
        "500 pictures of 512 px, known from a run before: from the reading of the folder to the first step",
    ),
    Measurement(
        "many",
        {
            "memory of 100,000 pictures (MiB)": "<= 256",
            "and of reading each (MiB)": "<= 32",
            "100,000 pictures: second run starts (s)": "<= 120",
        },
        FILES,
        many,
        "100,000 pictures of 16 px, with 16 MiB for what is kept in memory of them",
    ),
    Measurement(
        "step",
        {"data of a step (ms)": "<= 5"},
        FILES,
        step,
        "the median of a step's texts, views, draws and model inputs; one picture a step",
    ),
)
