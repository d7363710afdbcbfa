# SPDX-License-Identifier: Apache-2.0
"""u(sigma): the logarithm of the mean loss at each noise level, learned beside the network.

    minimized:  loss / exp(u(sigma)) + u(sigma)

At its best exp(u) is the mean loss of the level, so that every level comes to count the same (Karras et al. 2024,
"uncertainty-based loss weighting"; arXiv 2312.02696). Latent diffusion's trainer learns one number for each level of a
table (learn_logvar); here u is a smooth function of ln(sigma), which a short run can learn and continuous levels have.
"""

from collections.abc import Mapping

import torch

from ..random import generator

FEATURES, RATE, BETAS = 128, 0.01, (0.9, 0.99)
MOST = 20.0  # of |u|, a loss of 2e-9: a loss of exactly 0 has no logarithm
_LEAST_SIGMA = 1e-4


class LogVariance:
    """u as a sum of Fourier features of ln(sigma) / 4, with an Adam of its own; 0 at the start.

    Args:
        device: Where noise levels are.
    """

    def __init__(self, device: torch.device) -> None:
        draw = generator(0, "log variance")  # the same features in every run
        self._frequencies = torch.randn(FEATURES, generator=draw).to(device)
        self._phases = torch.rand(FEATURES, generator=draw).to(device)
        self.weights = torch.nn.Parameter(torch.zeros(FEATURES, device=device))
        self._adam = torch.optim.Adam([self.weights], lr=RATE, betas=BETAS)

    def __call__(self, sigma: torch.Tensor) -> torch.Tensor:
        """u ``[B]`` for sigma ``[B]``."""
        level = sigma.float().clamp(min=_LEAST_SIGMA).log() / 4
        turns = level[:, None] * self._frequencies + self._phases
        u = (2 * torch.pi * turns).cos() @ self.weights * (2 / FEATURES) ** 0.5
        return u.clamp(-MOST, MOST)

    def minimized(self, loss: torch.Tensor, sigma: torch.Tensor, *, learns: bool) -> torch.Tensor:
        """What is minimized in place of ``loss`` ``[B]`` at ``sigma`` ``[B]``.

        Args:
            loss: The loss of each sample.
            sigma: Their noise levels.
            learns: Whether u learns from them; else they are only brought to the others' scale.

        Returns:
            ``[B]``, the loss itself where u is 0.
        """
        u = self(sigma)
        return loss / u.exp() + u if learns else loss / u.detach().exp()

    def step(self) -> None:
        """Move u by what ``backward`` left, and forget it."""
        self._adam.step()
        self.forget()

    def forget(self) -> None:
        """Drop what ``backward`` left, of a step that is not taken."""
        self._adam.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU of the weights and of Adam's numbers."""
        with torch.inference_mode(False):
            own = {"weights": self.weights.detach(), **self._adam.state.get(self.weights, {})}
            return {name: value.to("cpu", copy=True) for name, value in own.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``state()`` gave; u begins at 0 where that is nothing.

        Args:
            state: What ``state()`` gave, or nothing.

        Raises:
            ValueError: It is something else.
        """
        if not state:
            return
        if "weights" not in state or state["weights"].shape != self.weights.shape:
            raise ValueError(f"The log-variance of the state is not one of {FEATURES} features.")
        shapes = {k: tuple(v.shape) for k, v in state.items() if k != "weights"}
        if shapes and shapes != {"step": (), "exp_avg": (FEATURES,), "exp_avg_sq": (FEATURES,)}:
            raise ValueError(f"The log-variance of the state keeps {shapes}, not what Adam does.")
        self.weights.copy_(state["weights"])
        packed = self._adam.state_dict()
        packed["state"] = {0: {k: v.clone() for k, v in state.items() if k != "weights"}}
        self._adam.load_state_dict(packed)
