# SPDX-License-Identifier: Apache-2.0
"""What fits on which card, computed for real layouts, SD 1.5 to Flux: `python -m benchmarks.memory_table`.

The models are made on the device `meta`, where tensors have sizes and no memory, trained for one forward and backward
pass with our own adapters and checkpointing, and every allocation is counted (`trainers.allocations`). Attention is
taken for a fused kernel: it keeps its inputs, its output and one number a row. `--write` puts the table into
docs/memory.md.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .subjects import ROOT, start

GIB = 2**30
CARDS = (8, 12, 16, 24)
OTHERS = 1.0  # GiB that the desktop, the driver and the kernels' workspaces take
RANK = 16
TOKENS = {"SD15": 77, "SDXL": 77, "SD3": 154, "Flux": 512}
WIDTHS = {"SD15": (768, None), "SDXL": (2048, 2816), "SD3": (4096, 2048), "Flux": (4096, 768)}
CASES = (
    ("SD15", 512),
    ("SD15", 768),
    ("SDXL", 512),
    ("SDXL", 768),
    ("SDXL", 1024),
    ("SD3", 512),
    ("SD3", 1024),
    ("Flux", 512),
    ("Flux", 1024),
)
OFF, ON, APART = "off", "on", "on, offload"
NAMES = {"SD15": "SD 1.5", "SDXL": "SDXL", "SD3": "SD3 medium", "Flux": "Flux dev"}
PAGE = ROOT / "docs" / "memory.md"
START, END = "<!-- made by `python -m benchmarks.memory_table --write` -->", "<!-- /made -->"


@dataclass(frozen=True)
class Case:
    """Bytes of one model at one size of pictures, with checkpointing or without, or with the blocks on the CPU."""

    name: str
    pixels: int
    mode: str
    weights: int
    trained: int
    one: int
    each: int

    @property
    def there(self) -> int:
        """Weights (bf16), the LoRA, its gradients and AdamW's two moments (fp32)."""
        return self.weights + 4 * self.trained

    def most(self, card: float) -> int:
        """Pictures in a pass that the plan would allow on a card of so many GiB; 0 when not one."""
        from graft.host.memory.plan import SPARE

        room = SPARE * ((card - OTHERS) * GIB - self.weights - self.trained) - 3 * self.trained
        return max(0, int((room - (self.one - self.each)) // self.each))


class Fused(torch.autograd.Function):
    """Attention by its memory alone: q, k, v ``[B, H, L, D]``, a result of the shape of q, and ``[B, H, L]`` fp32."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        rows = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def attend(_: Any, q: Any, k: Any, v: Any, heads: int, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The host's attention function, by its memory: ``[B, L, H D]``, or heads apart where it is asked for."""
    if not kwargs.get("skip_reshape"):
        q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    out = Fused.apply(q, k, v)
    if kwargs.get("skip_output_reshape"):
        return out
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


@contextmanager
def trainable(
    name: str, rank: int = RANK, blocks: str = "attention"
) -> Iterator[tuple[Any, Any, Any]]:
    """The network of a layout on `meta`, in bf16, with a LoRA on its attention layers.

    Args:
        name: of ``CASES``.
        rank: of the LoRA.
        blocks: which layers have it.

    Yields:
        The host's network, what is attached to it, and what can keep its blocks on the CPU.
    """
    start()
    from graft.adapters.attach import Attached
    from graft.adapters.lora import LoRA
    from graft.host.memory.offload import Offload
    from tests.host.files.test_keys import build

    patcher = build(name)
    network = patcher.model.diffusion_model.requires_grad_(False)
    network.to(torch.bfloat16)
    attached = Attached(network, LoRA(rank=rank, blocks=blocks), 0, "meta")
    try:
        yield network, attached, Offload(patcher)
    finally:
        attached.remove()


def forward(name: str, network: Any, pixels: int, pictures: int) -> torch.Tensor:
    """What the network gives for pictures of ``pixels`` x ``pixels``, ``[B, C, h, w]``."""
    channels = 16 if name in ("SD3", "Flux") else 4
    width, label = WIDTHS[name]
    make = {"device": "meta", "dtype": torch.bfloat16}
    x = torch.empty(pictures, channels, pixels // 8, pixels // 8, **make)
    text = torch.empty(pictures, TOKENS[name], width, **make)
    y = None if label is None else torch.empty(pictures, label, **make)
    options = {"optimized_attention_override": attend}
    times = torch.empty(pictures, device="meta")
    more = {"guidance": torch.empty(pictures, **make)} if name == "Flux" else {}
    out: torch.Tensor = network(x, times, context=text, y=y, transformer_options=options, **more)
    return out


def count(name: str, network: Any, attached: Any, pixels: int, pictures: int) -> int:
    """Bytes at the peak of one forward and backward pass, gradients of the parameters not counted."""
    from graft.trainers.allocations import held, peak

    parameters = list(attached.parameters().values())

    def work() -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        forward(name, network, pixels, pictures).float().square().mean().backward()

    made = peak(work, "meta") - held(parameters)
    for parameter in parameters:
        parameter.grad = None
    return made


def cases(name: str, sizes: list[int]) -> list[Case]:
    """All figures of one model."""
    start()
    from graft.host.memory.checkpointing import Checkpointing
    from graft.host.model.denoiser import guard_inputs
    from graft.trainers.allocations import held

    found = []
    with trainable(name) as (network, attached, offload):
        weights = held([*network.parameters(), *network.buffers()])
        trained = held(attached.parameters().values())
        checkpointing = Checkpointing(network)
        handles = guard_inputs(network, lambda: forward(name, network, 64, 1), torch.device("meta"))
        for mode in (OFF, ON, APART):
            if mode == ON:
                checkpointing.on()
                with torch.no_grad():
                    forward(name, network, 64, 1)
            if mode == APART:
                offload.copy_always()
                weights -= held(offload.parameters)
            for pixels in sizes:
                one, two = (count(name, network, attached, pixels, n) for n in (1, 2))
                found.append(Case(name, pixels, mode, weights, trained, one, two - one))
        checkpointing.off()
        for handle in handles:
            handle.remove()
    return sorted(found, key=lambda case: case.pixels)


def table(found: list[Case]) -> str:
    """The figures in Markdown; GiB with one decimal."""
    head = " | ".join(f"{card} GB" for card in CARDS)
    lines = [
        f"| model | pictures | checkpointing | there before | a pass of 1 | each more | {head} |",
        "|---|---|---|" + "---:|" * (3 + len(CARDS)),
    ]
    for case in found:
        fits = " | ".join(str(case.most(card) or "-") for card in CARDS)
        sizes = " | ".join(f"{size / GIB:.1f}" for size in (case.there, case.one, case.each))
        lines.append(
            f"| {NAMES[case.name]} | {case.pixels} x {case.pixels} | {case.mode} | {sizes} | {fits} |"
        )
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its marks in docs/memory.md."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(START)
    PAGE.write_text(
        f"{head}{START}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8", newline="\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    parser.add_argument("--only", default="", help=f"one of {', '.join(NAMES)}")
    options = parser.parse_args(arguments)
    found = []
    for name in NAMES:
        if options.only in ("", name):
            found += cases(name, [pixels for model, pixels in CASES if model == name])
    print(table(found))
    if options.write:
        write(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
