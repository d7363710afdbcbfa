# SPDX-License-Identifier: Apache-2.0
"""The plain loss of held-out pictures at fixed noise levels with fixed noise.

A training loss jumps with every noise level that is drawn; this one compares step with step, since nothing in
it changes but the weights. It is the loss of w = 1 and rho = r^2 (Karras et al. 2022, eq. 8; arXiv 2206.00364),
whatever the run minimizes, at ``LEVELS`` quantiles of the model's own table.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import nn

from .data.batch import Batch
from .denoiser import Denoiser
from .memory import Memory
from .objectives import METRICS, NOISE, WEIGHTS, Noised, Objective
from .random import Draws

LEVELS = 8
_PLAIN = Objective(NOISE.get("model")(), WEIGHTS.get("one")(), METRICS.get("l2")(), preserve=0.0)


class HeldOut(Protocol):
    """Pictures that are not trained on."""

    @property
    def buckets(self) -> Sequence[Hashable]:
        """The bucket of each picture."""

    def batches(self, items: Sequence[int], draws: Draws) -> Iterator[Batch]:
        """The pictures, in the crops and with the captions that the draws choose."""


class Validator:
    """Measures; draws are keyed by seed, level and picture, so that every call has the same.

    Args:
        denoiser: The model as it is when called.
        data: The held-out pictures.
        seed: Seed of the run.
        batch_size: Pictures in one forward pass.
        poll: Called before every forward pass; may raise to interrupt.
        layers: What may drop something out; in evaluation mode meanwhile.
        memory: Says how large a forward pass may be instead of ``batch_size``, and what becomes of one too large.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: HeldOut,
        seed: int,
        batch_size: int = 1,
        poll: Callable[[], object] = lambda: None,
        layers: Sequence[nn.Module] = (),
        memory: Memory | None = None,
    ) -> None:
        self._denoiser, self._data, self._seed = denoiser, data, seed
        self._poll, self._layers = poll, layers
        self._memory = memory or Memory(batch_size)
        u = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
        sigma = _PLAIN.noise.quantile(u, denoiser)
        self.sigmas: torch.Tensor = denoiser.nearest(sigma).float().cpu()

    def __call__(self) -> tuple[tuple[float, float], ...]:
        """The mean loss over the pictures at each noise level, as pairs of sigma and loss."""
        total = self._memory.attempt(self._total, lambda: None, "in a validation")
        means = total / len(self._data.buckets)
        return tuple(zip(self.sigmas.tolist(), means.tolist(), strict=True))

    def _total(self) -> torch.Tensor:
        """Losses summed over all pictures, ``[LEVELS]`` fp64."""
        with torch.no_grad(), _aside(self._layers, self._seed):
            groups = _groups(self._data.buckets, self._memory.micro_batch)
            return torch.as_tensor(sum(self._sums(items) for items in groups))

    def _sums(self, items: list[int]) -> torch.Tensor:
        """Losses summed over ``items``, ``[LEVELS]`` fp64."""
        sums = torch.zeros(LEVELS, dtype=torch.float64)
        for batch in self._data.batches(items, self._draws(0, items)):
            if batch.keeps_base:
                continue
            for level in range(LEVELS):
                self._poll()
                clean = batch.latents
                noise = self._draws(level, items).normal(clean.shape[1:]).to(clean.device)
                sigma = self.sigmas[level].expand(len(clean)).to(clean.device)
                x = self._denoiser.add_noise(sigma, noise, clean)
                loss = _PLAIN.sample_loss(self._denoiser, Noised(sigma, x, clean), batch)
                sums[level] += loss.cpu().double().sum()
        return sums

    def _draws(self, level: int, items: list[int]) -> Draws:
        return Draws(self._seed, level, items, len(self._data.buckets), "validation ")


def _groups(buckets: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Pictures of one bucket, ``size`` at most."""
    members: dict[Hashable, list[int]] = {}
    for index, bucket in enumerate(buckets):
        members.setdefault(bucket, []).append(index)
    for group in members.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


@contextmanager
def _aside(layers: Sequence[nn.Module], seed: int) -> Iterator[None]:
    """Leave the layers' modes and the global generators as they are; what draws from these draws the same each time."""
    modes = [(module, module.training) for layer in layers for module in layer.modules()]
    with ExitStack() as stack:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices))
        torch.default_generator.manual_seed(seed % 2**63)
        if devices:
            torch.cuda.manual_seed_all(seed % 2**63)
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
