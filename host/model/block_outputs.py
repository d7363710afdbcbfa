# SPDX-License-Identifier: Apache-2.0
"""What the blocks of a MODEL put out at some noise levels, and how alike those of two MODELs are.

The MODEL runs as the host's sampler runs it: patches, injections and wrappers of the wire count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...metrics.cka import linear_cka
from ..memory.checkpointing import find_blocks

MOST_SAMPLES = 4096  # places of the pictures that are compared, of those that a block has
Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Alike:
    """Linear CKA by block and noise level.

    Attributes:
        blocks: Names in the order in which they are computed.
        levels: Noise levels, the highest first.
        values: ``[blocks, levels]``, 1 where nothing but a rotation changed.
    """

    blocks: tuple[str, ...]
    levels: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]


def alike(
    one: Any,
    other: Any,
    positive: Sequence[Any],
    latent: torch.Tensor,
    levels: int,
    seed: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Alike:
    """Compare the blocks of two MODELs on the same noised latents.

    Args:
        one: A MODEL.
        other: One of the same layout.
        positive: CONDITIONING.
        latent: ``[B, C, ...]`` as on a LATENT wire.
        levels: How many noise levels, evenly spaced over the model's schedule.
        seed: Of the noise, and of the places that are compared.
        tell: Hears how many of all passes are done.

    Raises:
        ValueError: The MODELs have different blocks, or blocks that are not known.
    """
    sigmas = _levels(one, levels)
    rows: dict[str, list[float]] = {}
    for index, sigma in enumerate(sigmas):
        found = []
        for number, model in enumerate((one, other)):
            found.append(outputs(model, positive, latent, sigma, seed))
            tell(2 * index + number + 1, 2 * len(sigmas))
        first, second = found
        if first.keys() != second.keys():
            apart = sorted(first.keys() ^ second.keys())
            raise ValueError(
                f"The two MODELs have different blocks, for example {', '.join(apart[:3])}: connect a model and the "
                "same model after training."
            )
        for name, values in first.items():
            rows.setdefault(name, []).append(linear_cka(values, second[name]))
    return Alike(tuple(rows), tuple(sigmas), tuple(map(tuple, rows.values())))


def outputs(
    model: Any, positive: Sequence[Any], latent: torch.Tensor, sigma: float, seed: int
) -> Outputs:
    """What each block puts out at one noise level.

    Args:
        model: A MODEL.
        positive: CONDITIONING.
        latent: ``[B, C, ...]`` as on a LATENT wire.
        sigma: The noise level.
        seed: Of the noise, and of the places that are taken.

    Returns:
        ``[samples, features]`` in fp32 on the CPU by block, in the order in which they are computed; the places are
        the same for every MODEL.
    """
    import comfy.sample

    blocks = named_blocks(model.model.diffusion_model)
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    noise = comfy.sample.prepare_noise(latent, seed)
    found: dict[str, torch.Tensor] = {}
    levels = torch.tensor([sigma, 0.0])
    comfy.sample.sample_custom(
        model, noise, 1.0, _Look(blocks, found, seed), levels, positive, positive, latent,
        disable_pbar=True, seed=seed,
    )  # fmt: skip
    return found


def named_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are compared, by name: of a UNet the last layer of each block.

    Raises:
        ValueError: The network has no blocks that this function knows.
    """
    if not hasattr(network, "input_blocks"):
        names = {module: name for name, module in network.named_modules()}
        return {names[block]: block for block in find_blocks(network)}
    unet: Any = network
    found = {f"input_blocks.{i}": block[-1] for i, block in enumerate(unet.input_blocks)}
    if getattr(unet, "middle_block", None) is not None:
        found["middle_block"] = unet.middle_block[-1]
    return found | {f"output_blocks.{i}": block[-1] for i, block in enumerate(unet.output_blocks)}


def _levels(model: Any, count: int) -> list[float]:
    sampling = model.get_model_object("model_sampling")
    return [float(sampling.percent_to_sigma((i + 0.5) / count)) for i in range(count)]


class _Look:
    """A sampler that computes D once, at the first level, and notes what the blocks put out."""

    def __init__(
        self, blocks: Mapping[str, nn.Module], found: dict[str, torch.Tensor], seed: int
    ) -> None:
        self._blocks, self._found, self._seed = blocks, found, seed

    def max_denoise(self, model_wrap: Any, sigmas: torch.Tensor) -> bool:
        """Noise is never taken to be all there is."""
        return False

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """The host calls this with the model loaded."""
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, False)
        handles = [
            block.register_forward_hook(functools.partial(self._note, name))
            for name, block in self._blocks.items()
        ]
        try:
            model_wrap(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
        finally:
            for handle in handles:
                handle.remove()
        return x

    def _note(self, name: str, module: nn.Module, args: Any, out: Any) -> None:
        streams = [out] if isinstance(out, torch.Tensor) else out  # of pictures and of text, say
        rows = torch.cat([_rows(one) for one in streams if isinstance(one, torch.Tensor)])
        if len(rows) > MOST_SAMPLES:
            generator = torch.Generator().manual_seed(self._seed)
            rows = rows[
                torch.randperm(len(rows), generator=generator)[:MOST_SAMPLES].to(rows.device)
            ]
        kept = rows.detach().to("cpu", torch.float32, copy=True)
        before = self._found.get(name)
        self._found[name] = kept if before is None else torch.cat([before, kept])


def _rows(values: torch.Tensor) -> torch.Tensor:
    """``[B, C, ...]`` or ``[B, T, C]`` as ``[samples, C]``."""
    return (values.movedim(1, -1) if values.ndim > 3 else values).flatten(0, -2)
