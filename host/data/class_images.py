# SPDX-License-Identifier: Apache-2.0
"""Class images for prior preservation (Ruiz et al. 2023, section 4.2; arXiv 2208.12242): given, or drawn by the model.

What the model draws is kept under output/graft/class/<name>, a PNG and its prompt as .txt, so that the folder can be
loaded as pictures, too. Pictures are drawn four at a time, each four by itself: a folder that is topped up holds what
one that is filled at once holds.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...trainers.data import Captioning, Dataset, ImageError, Item, check_image, join, size_for
from ...trainers.data.cache import key_of
from ...trainers.preview import Preview
from .. import graph
from ..files import paths
from ..preview import sampled as preview
from ..runs import identity

STEPS, CFG = 20, 4.0
# What datasets of this process have of each folder, by file its size and time, and how often some of it was lost.
_kept: dict[Path, dict[Path, tuple[int, int]]] = {}
_losses: Counter[Path] = Counter()


@dataclass(frozen=True, eq=False)
class Painter:
    """What class images are drawn with; without one of the wires nothing can be drawn.

    Attributes:
        model: The MODEL on the wire.
        clip: The CLIP on the wire.
        vae: The VAE on the wire.
        node_id: Where progress is shown.
    """

    model: Any
    clip: Any
    vae: Any
    node_id: str | None = None

    @property
    def can_draw(self) -> bool:
        """Whether all of them are connected."""
        return None not in (self.model, self.clip, self.vae)


def with_class_images(
    dataset: Dataset,
    prompt: str,
    number: int,
    name: str,
    given: Dataset | None = None,
    painter: Painter | None = None,
) -> Dataset:
    """The dataset with class images: those that are given, then those that the model draws.

    Args:
        dataset: The pictures of the concept.
        prompt: What is to be seen on class images; the caption of those that have none.
        number: How many there have to be at least; 0 for those that are given.
        name: The folder of those that are drawn.
        given: Pictures of the class.
        painter: Draws what is missing.

    Raises:
        ValueError: There are too few and nothing to draw more with, or the prompt or the name cannot be used.
        OSError: A drawn picture cannot be written.
    """
    have = 0 if given is None else len(given)
    number = max(number, 0 if have else 1)
    prompt = prompt.strip()
    parts = []
    if given is not None:
        silent = sum(not any(item.captions) for item in given.items)
        if silent and not prompt:
            raise ValueError(
                f"class_prompt is empty, but {silent} of {have} class images have no caption: say what they show, "
                "'a photo of a dog' say."
            )
        parts.append(given.without_classes().map(lambda part: _captioned(part, prompt)))
    if have < number:
        if painter is None or not painter.can_draw:
            raise ValueError(
                f"There are {have} class images, and number asks for {number}: connect model, clip and vae to have the "
                f"missing {number - have} drawn, or connect more class images, or lower number."
            )
        items = _drawn(painter, prompt, number - have, name, dataset.resolution)
        source, how = f"class {name}", Captioning(weighted=True)  # as they were drawn
        parts.append(Dataset(items, resolution=dataset.resolution, source=source, captioning=how))
    return replace(dataset, classes=parts[0] if len(parts) == 1 else join(parts))


def fingerprint(name: str) -> str:
    """Changes when a drawn picture that some dataset has is gone, or is another one.

    It is the same before pictures are drawn and after, as those are drawn because of it; so that a graph that was run
    once is not run again.

    Args:
        name: The folder of those that are drawn.

    Raises:
        ValueError: The name cannot be used.
    """
    paths.safe_name(name, "name of the class images")
    folder = paths.inside(paths.output_folder(), f"graft/class/{name}")
    if any(_facts(path) != facts for path, facts in _kept.get(folder, {}).items()):
        del _kept[folder]
        _losses[folder] += 1
    return str(_losses[folder])


def _facts(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def _captioned(part: Dataset, prompt: str) -> Dataset:
    items = tuple(
        item if any(item.captions) else replace(item, captions=(prompt,)) for item in part.items
    )
    if any(any(item.captions) for item in part.items):
        return replace(part, items=items)
    return replace(part, items=items, captioning=replace(part.captioning, weighted=True))


def _drawn(
    painter: Painter, prompt: str, number: int, name: str, resolution: int
) -> tuple[Item, ...]:
    if not prompt:
        raise ValueError(
            "class_prompt is empty: say what class images show, 'a photo of a dog' say."
        )
    folder = paths.check_writable(paths.class_folder(name))
    size = size_for(resolution, resolution, resolution)
    settings = _settings(painter.model, prompt)
    wires = (identity.model_digest(painter.model), identity.clip_digest(painter.clip))
    key = key_of("graft class images 1", *wires, repr(settings), repr(size))[:12]
    wanted = [folder / f"{key}_{index:05}.png" for index in range(number)]
    missing = [path for path in wanted if not _is_whole(path)]
    if missing:
        firsts = sorted({wanted.index(path) // preview.AT_ONCE for path in missing})
        _draw(painter, settings, size, folder, key, firsts)
    _kept.setdefault(folder, {}).update((path, _facts(path)) for path in wanted)
    return tuple(Item((prompt,), path=str(path), size=size) for path in wanted)


def _settings(model: Any, prompt: str) -> Preview:
    is_distilled = model.model.model_config.unet_config.get("guidance_embed", False)
    prompts = (prompt,) * preview.AT_ONCE
    return Preview(prompts, steps=STEPS, cfg=1.0 if is_distilled else CFG, scheduler="simple")


def _draw(
    painter: Painter,
    settings: Preview,
    size: tuple[int, int],
    folder: Path,
    key: str,
    fours: Sequence[int],
) -> None:
    """Draw and write the pictures of some fours; what is written stays, whatever ends it."""
    import comfy.utils

    with torch.inference_mode(), preview.generators_kept():
        prompts = preview.encode_prompts(painter.clip, settings)
        bar = comfy.utils.ProgressBar(len(fours), node_id=painter.node_id)
        for done, four in enumerate(fours):
            text = f"drawing class images {done * preview.AT_ONCE + 1} of {len(fours) * preview.AT_ONCE}"
            graph.show_text(painter.node_id, text)
            start = four * preview.AT_ONCE
            own = replace(settings, seed=start)
            given = (painter.model, prompts, own, painter.vae, size)
            latents = preview.sampled(*given, at_once=preview.AT_ONCE)
            pictures = torch.cat([preview.decoded(painter.vae, latent) for latent in latents])
            for offset, picture in enumerate(pictures):
                _write(folder / f"{key}_{start + offset:05}", picture, settings.prompts[0])
            bar.update(1)


def _write(stem: Path, picture: torch.Tensor, prompt: str) -> None:
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    image = Image.fromarray(pixels.numpy())
    text = stem.with_suffix(".txt")
    paths.atomic_write(text, functools.partial(_write_text, prompt))
    paths.atomic_write(stem.with_suffix(".png"), functools.partial(image.save, format="PNG"))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _is_whole(path: Path) -> bool:
    try:
        check_image(path)
    except ImageError:
        return False
    return True
