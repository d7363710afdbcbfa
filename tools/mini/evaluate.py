# SPDX-License-Identifier: Apache-2.0
"""Sample prompts through ComfyUI's own sampler and let the scorer judge them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...metrics import scorer as scoring
from . import captions

log = logging.getLogger("graft.pretrain")


def conditioning(clip: Any, text: str) -> list[Any]:
    """Encode a prompt as `CLIPTextEncode` does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@torch.no_grad()
def sample(
    model: Any,
    clip: Any,
    vae: Any,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 20,
    cfg: float = 4.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    size: tuple[int, int] = (64, 64),
) -> torch.Tensor:
    """One picture per prompt, as a KSampler with its own seed each would give.

    Prompts are sampled together: the noise of picture i comes from seed + i.

    Args:
        model: MODEL.
        clip: CLIP.
        vae: VAE.
        prompts: What to draw.
        seed: Seed of the first picture.
        steps: Sampling steps.
        cfg: Guidance scale.
        sampler: ComfyUI's sampler name.
        scheduler: ComfyUI's scheduler name.
        size: Height and width in pixels.

    Returns:
        IMAGE ``[len(prompts), height, width, 3]`` in 0..1.
    """
    import comfy.sample

    shape = (1, 4, size[0] // 8, size[1] // 8)
    negative = conditioning(clip, "")
    pictures = []
    for start in range(0, len(prompts), 32):
        part = prompts[start : start + 32]
        noise = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed + start + i))
            for i in range(len(part))
        ]
        encoded = [conditioning(clip, prompt)[0] for prompt in part]
        pooled = torch.cat([entry[1]["pooled_output"] for entry in encoded])
        positive = [[torch.cat([entry[0] for entry in encoded]), {"pooled_output": pooled}]]
        batch = torch.cat(noise)
        empty = torch.zeros_like(batch)
        latent = comfy.sample.sample(
            model,
            batch,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            empty,
            disable_pbar=True,
            seed=seed,
        )
        pictures.append(vae.decode(latent).float().cpu())
    return torch.cat(pictures)


def score(
    images: torch.Tensor, asked: Sequence[dict[str, str]], judge: Any = None
) -> dict[str, float]:
    """Share of pictures that show what was asked.

    Args:
        images: IMAGE ``[N, H, W, 3]``.
        asked: Attributes by name, one entry a picture.
        judge: A loaded scorer; the shipped one when left out.

    Returns:
        Shares by attribute, and `all` for shape AND colour AND background.
    """
    verdicts = (judge or scoring.load_scorer()).judge(images)
    right = {}
    for kind in ("shape", "colour", "background", "texture"):
        verdict = verdicts[kind]
        chances = verdict.probabilities.tolist()
        right[kind] = [
            verdict.labels[index] == entry[kind] and chances[index] >= scoring.CERTAIN
            for index, entry in enumerate(asked)
        ]
    shares = {kind: sum(values) / max(1, len(values)) for kind, values in right.items()}
    together = zip(right["shape"], right["colour"], right["background"], strict=True)
    shares["all"] = sum(all(entry) for entry in together) / max(1, len(asked))
    return shares


def follow_prompts(
    model: Any, clip: Any, vae: Any, count: int = 256, seed: int = 7, **options: Any
) -> dict[str, float]:
    """How well the model follows prompts of the grammar.

    Args:
        model: MODEL.
        clip: CLIP.
        vae: VAE.
        count: How many prompts.
        seed: Seed of the prompts and the noise.
        options: More arguments of `sample`.

    Returns:
        Shares as `score` gives them.
    """
    pairs = captions.prompts(count, seed)
    images = sample(model, clip, vae, [text for text, _ in pairs], seed=seed * 1000, **options)
    return score(images, [asked for _, asked in pairs])


def grid(images: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """Lay pictures ``[N, H, W, 3]`` out as one picture ``[rows * H, columns * W, 3]``."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    padded = torch.cat([images, torch.ones(rows * columns - count, height, width, 3)])
    laid = padded.view(rows, columns, height, width, 3).permute(0, 2, 1, 3, 4)
    return laid.reshape(rows * height, columns * width, 3)


def save_picture(image: torch.Tensor, path: Path, zoom: int = 2) -> None:
    """Save one picture ``[H, W, 3]`` in 0..1 as PNG, enlarged without smoothing."""
    from PIL import Image

    array = (
        (image.clamp(0, 1) * 255)
        .round()
        .byte()
        .repeat_interleave(zoom, 0)
        .repeat_interleave(zoom, 1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.numpy()).save(path)


def main(folder: Path, count: int = 256) -> dict[str, float]:
    """Sample the shipped model, save a grid and log the scores.

    Args:
        folder: Where the grid goes.
        count: How many prompts.

    Returns:
        Shares as `score` gives them.
    """
    from ...host.model.mini import load_mini

    model, clip, vae = load_mini()
    pairs = captions.prompts(count, 7)
    images = sample(model, clip, vae, [text for text, _ in pairs], seed=7000)
    save_picture(grid(images[:64]), folder / "samples.png")
    for place, (text, _) in enumerate(pairs[:64]):
        log.info("row %d column %d: %s", place // 8, place % 8, text)
    try:
        shares = score(images, [asked for _, asked in pairs])
    except FileNotFoundError as error:
        log.warning("not scored: %s", error)
        return {}
    log.info("follows prompts: %s", {kind: round(share, 3) for kind, share in shares.items()})
    return shares
