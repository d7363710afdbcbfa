# SPDX-License-Identifier: Apache-2.0
"""What a trainer's step is held against: the least that anybody's could be.

    python -m benchmarks.yardsticks --model sdxl64 --blocks all --turns 5

``hooks`` is a plain LoRA by hand, org(x) + s B A x on the same layers, with a bare loop around it; ``frozen`` is the
network alone, forward and backward to its input; ``diffusers`` is the inner step of diffusers' SDXL script, its UNet
at the same size with PEFT's layers. All have AdamW, fp32, and the eps loss of fresh noise.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .contenders import ALL, ATTENTION, LEARNING_RATE, RANK, graft
from .subjects import SUBJECTS, Pictures, Subject, start

LEVEL = 2.0  # of the noise; a step's time does not depend on it
PEFT_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


def hooks(
    subject: Subject,
    model: Any,
    pictures: Pictures,
    steps: int,
    checkpointing: bool,
    blocks: str = ALL,
) -> list[float]:
    """A LoRA by hand on the host's model."""
    with _hosted(subject, model, pictures, checkpointing) as (trained, forward):
        layers = _hooked(trained.diffusion_model, blocks)
        try:
            return _train([p for layer in layers for p in layer.parameters()], forward, steps)
        finally:
            for layer in layers:
                layer.module.__dict__.pop("forward", None)


def frozen(
    subject: Subject, model: Any, pictures: Pictures, steps: int, checkpointing: bool
) -> list[float]:
    """No adapter: the gradient goes to the input alone, through every layer."""
    with _hosted(subject, model, pictures, checkpointing) as (_, forward):
        return _train([], forward, steps)


def diffusers(
    subject: Subject,
    model: Any,
    pictures: Pictures,
    steps: int,
    checkpointing: bool,
    blocks: str = ALL,
) -> list[float]:
    """diffusers' UNet at the subject's size with PEFT's LoRA; the model on the wire is not used."""
    from peft import LoraConfig

    network = unet(subject)
    network.requires_grad_(False)
    chosen = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and (blocks == ALL or name.endswith(PEFT_ATTENTION))
    ]
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=chosen))
    if checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    count = subject.batch
    text, pooled = pictures.text[:count], pictures.pooled[:count]
    more = {"text_embeds": pooled, "time_ids": torch.full((count, 6), 256.0)}
    at = torch.full((count,), 500)

    def forward(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = network(x, at, text, added_cond_kwargs=more).sample
        return out

    steps_of = _steps(pictures.latents[:count], forward)
    return _train([p for p in network.parameters() if p.requires_grad], steps_of, steps)


def unet(subject: Subject) -> Any:
    """diffusers' UNet2DConditionModel with the sizes of the subject's network and random weights."""
    from diffusers import UNet2DConditionModel

    sizes = subject.config().unet_config
    width, depths = sizes["model_channels"], sizes["transformer_depth"]
    per_block = sizes["num_res_blocks"][0]
    factors = sizes["channel_mult"]
    depth = [depths[i * per_block] for i in range(len(factors))]
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=[width * factor for factor in factors],
        layers_per_block=per_block,
        down_block_types=["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in depth],
        up_block_types=["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in reversed(depth)],
        transformer_layers_per_block=[n or 1 for n in depth],
        attention_head_dim=[width * factor // _head(sizes) for factor in factors],
        cross_attention_dim=sizes["context_dim"],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=sizes["adm_in_channels"],
    )


def _head(sizes: dict[str, Any]) -> int:
    return int(sizes["num_head_channels"])


class _Hook(nn.Module):
    """org(x) + s B A x, as one would write it down."""

    def __init__(self, module: Any, scale: float = 1.0):
        super().__init__()
        self.__dict__["module"], self.scale = module, scale  # no parameters of it
        out, inside, *kernel = module.weight.shape
        self.down = nn.Parameter(torch.randn(RANK, inside, *kernel) / inside**0.5)
        self.up = nn.Parameter(torch.zeros(out, RANK, *(1 for _ in kernel)))
        self.base = module.forward
        if kernel:
            module.forward = self.convolved
        else:
            module.forward = self.linear

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.down), self.up)

    def convolved(self, x: torch.Tensor) -> torch.Tensor:
        m = self.module
        inner = F.conv2d(x, self.down, None, m.stride, m.padding, m.dilation)
        return self.base(x) + self.scale * F.conv2d(inner, self.up)


def _hooked(network: nn.Module, blocks: str) -> list[Any]:
    from graft.adapters.targets import targets

    return [_Hook(network.get_submodule(name)) for name in targets(network, blocks)]


@contextmanager
def _hosted(
    subject: Subject, model: Any, pictures: Pictures, checkpointing: bool
) -> Iterator[tuple[Any, Callable[[bool], torch.Tensor]]]:
    """The trainee, and what computes one loss with it."""
    from graft.host.model.trainee import trainee
    from graft.host.text.conditioning import Conditioner, Encoded

    count = subject.batch
    size = (subject.latent[1] * 8, subject.latent[0] * 8)
    with torch.inference_mode(False), trainee(model, precision="fp32") as trained:
        trained.checkpointing(checkpointing)
        conditioner = Conditioner(trained.patcher, trained.device)
        texts = [
            Encoded(pictures.text[i : i + 1], {"pooled_output": pictures.pooled[i : i + 1]})
            for i in range(count)
        ]
        made = [conditioner.per_item(text, width=size[0], height=size[1]) for text in texts]
        batch = conditioner.batch(made)
        sigma = torch.full((count,), LEVEL)

        def forward(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = trained.denoiser(x, sigma, batch)
            return (x - out) / LEVEL

        yield trained, _steps(pictures.latents[:count].clone(), forward)


def _steps(
    latents: torch.Tensor, forward: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[bool], torch.Tensor]:
    def loss(is_whole: bool) -> torch.Tensor:
        noise = torch.randn_like(latents)
        x = (latents + LEVEL * noise).requires_grad_(is_whole)
        return F.mse_loss(forward(x), noise)

    return loss


def _train(
    parameters: Sequence[nn.Parameter], loss: Callable[[bool], torch.Tensor], steps: int
) -> list[float]:
    """A bare loop; returns the clock at the end of each step."""
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE) if parameters else None
    marks = []
    for _ in range(steps):
        loss(optimizer is None).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
    return marks


def compare(subject: Subject, blocks: str, turns: int, size: int = 3) -> dict[str, list[float]]:
    """Seconds a step of ours and of every yardstick, in turns.

    Args:
        subject: What is trained.
        blocks: The coverage.
        turns: How often each has its turn.
        size: Timed steps of a turn; one before them is not counted.

    Returns:
        By contender the median of each turn.
    """
    start()
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    contenders: dict[str, Any] = {
        "graft": partial(graft, blocks=blocks),
        "hooks": partial(hooks, blocks=blocks),
        "frozen": frozen,
    }
    if -1 not in (subject.config().unet_config.get("transformer_depth_middle"),):
        contenders["diffusers"] = partial(diffusers, blocks=blocks)
    models = {name: subject.model() for name in contenders}
    pictures = subject.pictures(max(4, subject.batch))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            marks = contenders[name](subject, models[name], pictures, size + 1, False)
            times = [b - a for a, b in zip(marks, marks[1:], strict=False)]
            seconds[name].append(median(times))
        said = {name: f"{times[-1]:.3f}" for name, times in seconds.items()}
        print(f"turn {turn + 1}: {said}", file=sys.stderr, flush=True)
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="sdxl64", choices=SUBJECTS)
    parser.add_argument("--blocks", default=ALL, choices=(ALL, ATTENTION))
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    seconds = compare(SUBJECTS[options.model], options.blocks, options.turns)
    for name, times in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds["graft"], times, strict=True)]
        print(
            f"{name:10} {median(times):7.3f} s/step   ours / it {median(ratios):.3f}  "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
