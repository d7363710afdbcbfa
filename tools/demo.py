#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train a LoRA in a real, headless ComfyUI by the shipped workflow, and show what it learned.

    make demo                                  about five minutes on two CPU cores
    make demo ARGS="--steps 100 --samples 8"   a quicker look

It leaves the LoRA file, a plot of the loss, a before/after picture and the scores in out/demo.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.host import inprocess

inprocess.alias_pack()

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from graft.benchmarks.skeleton import concept, graphs  # noqa: E402
from graft.host.drawing import plots  # noqa: E402
from graft.tools import pictures  # noqa: E402
from tests.host.server import ComfyServer, ExecutionError, PromptRejected, ServerError  # noqa: E402

OUT = inprocess.ROOT / "out" / "demo"
OTHERS = 48
RECENT = 50
BAR, WIDTH = 0.70, 30
WHEN = ("before", "after")


def main(arguments: list[str] | None = None) -> int:
    """Command line of `make demo`."""
    options = _options(arguments)
    started = time.monotonic()
    try:
        said = demo(options.out, options.steps, options.samples, options.device)
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except (ServerError, OSError, ValueError, RuntimeError) as error:
        text = str(error).split("Traceback")[0].strip()
        print(f"\nThe demo failed: {text}", file=sys.stderr)
        print(f"ComfyUI's log: {options.out / 'comfyui' / 'server.log'}", file=sys.stderr)
        return 1
    print(said)
    print(f"done in {clock(time.monotonic() - started)}")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--steps", type=int, default=0, help="instead of the workflow's own steps")
    parser.add_argument("--samples", type=int, default=32, help="prompts that are scored")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


def demo(out: Path, steps: int = 0, samples: int = 32, device: str = "auto") -> str:
    """Train, sample and score; returns what to tell.

    Args:
        out: Folder of the files; what an earlier demo left is removed.
        steps: Training steps; 0 takes the workflow's.
        samples: Prompts for the concept that are sampled and scored.
        device: "auto" or "cpu".
    """
    shutil.rmtree(out, ignore_errors=True)
    base = out / "comfyui"
    base.mkdir(parents=True)
    print("starting ComfyUI ...", flush=True)
    with ComfyServer(base, device=device, copy_pack=False) as server:
        lora, losses, seconds, memory = train(server, steps)
        shutil.copy(server.output / "loras" / lora, out / lora)
        before, after, prompts = compare(server, lora, samples)
    plot = pictures.save(_image(plots.loss_plot(losses)[0]), out / "loss.png")
    grid = pictures.save(_grid(before, after, prompts), out / "before_after.png")
    scores = _scores(before, after, prompts, samples)
    facts = {"steps": len(losses), "seconds": round(seconds, 1), "memory_gib": round(memory, 2)}
    facts |= {"lora": lora, **scores}
    (out / "scores.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return "\n".join(
        [
            "",
            f"LoRA          {out / lora}",
            f"loss plot     {plot}",
            f"before/after  {grid}",
            f"training      {len(losses)} steps in {clock(seconds)}, {memory:.1f} GiB with ComfyUI",
            "",
            *_table(scores, samples),
        ]
    )


def train(server: ComfyServer, steps: int = 0) -> tuple[str, list[float], float, float]:
    """Run the shipped workflow.

    Args:
        server: A running ComfyUI.
        steps: Training steps; 0 takes the workflow's.

    Returns:
        The LoRA's file name in output/loras, the losses, the seconds that training took, and the
        most memory in GiB that ComfyUI had at a time.
    """
    prompt = graphs.shipped(server)
    (node,) = graphs.nodes_of(prompt, "GraftTrainLora")
    if steps:
        prompt[node]["inputs"] |= {"steps": steps, "steps_unit": "steps"}
    prompt_id = server.queue(prompt)
    show, sizes = Bar("training"), [0.0]

    def look() -> None:
        sizes.append(resident(server))
        heard = graphs.messages(server, prompt_id)
        times = [message["s_per_step"] for message in heard if message.get("s_per_step")]
        for message in heard[-1:]:
            loss = f"loss {message['loss']:.4f}  " if message.get("loss") is not None else ""
            a_step = median(times[-RECENT:]) if times else 0.0  # one slow step says nothing
            left = (message["total"] - message["step"]) * a_step
            show(message["step"], message["total"], f"{loss}ETA {clock(left)}")

    entry = follow(server, prompt_id, look)
    show.end()
    run = graphs.messages(server, prompt_id)[0]["run"]
    rows = graphs.log_rows(server, run)
    history = server.get(f"/graft/runs/{run}")
    times = [row["time"] for row in rows if row["kind"] in ("start", "progress")]
    losses = [float("nan") if row[2] is None else row[2] for row in history["points"]]
    (save,) = graphs.nodes_of(prompt, "GraftSaveLora")
    print(graphs.shown(entry, save), flush=True)
    (lora,) = graphs.loras(server)
    return lora, losses, times[-1] - times[0], max(sizes)


def compare(
    server: ComfyServer, lora: str, samples: int
) -> tuple[torch.Tensor, torch.Tensor, concept.Prompts]:
    """Sample the same prompts and seeds without and with the saved LoRA, by the stock nodes.

    Args:
        server: A running ComfyUI.
        lora: File name in output/loras.
        samples: Prompts for the concept; a few others are added.

    Returns:
        Pictures before and after, and their prompts.
    """
    prompts = concept.concept_prompts(samples) + concept.other_prompts(OTHERS)
    graph = graphs.Mini(server)
    tuned = graph.stock_lora(lora)
    negative = [graph.add("CLIPTextEncode", clip=graph.clip, text=""), 0]
    common: dict[str, Any] = {"steps": 20, "negative": negative, "latent": False}
    for model, prefix in zip((graph.model, tuned), WHEN, strict=True):
        for number, (text, _) in enumerate(prompts):
            seed = concept.NOISE_SEED + number
            graph.sample(model, f"{prefix}_{number:03}", prompt=text, seed=seed, **common)
    prompt_id, total = server.queue(graph.prompt), 2 * len(prompts)
    show = Bar("sampling")

    def look() -> None:
        done = [path for prefix in WHEN for path in server.output.glob(f"{prefix}_[0-9]*.png")]
        show(len(done), total, " and ".join(WHEN))

    follow(server, prompt_id, look)
    show.end()
    return *(_read(server, prefix, len(prompts)) for prefix in WHEN), prompts


def follow(server: ComfyServer, prompt_id: str, look: Callable[[], None]) -> dict[str, Any]:
    """Wait for a prompt, calling ``look`` now and then; its history entry."""
    while True:
        try:
            return server.wait(prompt_id, timeout_s=0.5)
        except (ExecutionError, PromptRejected):
            raise
        except ServerError:
            if not server.is_alive():
                raise
            look()


def resident(server: ComfyServer) -> float:
    """GiB of memory that the server has now."""
    import psutil  # the host's own requirement

    return psutil.Process(server.process.pid).memory_info().rss / 2**30 if server.process else 0.0


class Bar:
    """A progress bar on one line; where nobody watches, a line every ten seconds.

    Args:
        label: What goes on.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._live = sys.stdout.isatty()
        self._line_at = 0.0
        self._last: tuple[int, int, str] | None = None

    def __call__(self, step: int, total: int, more: str) -> None:
        """Show ``step`` of ``total``."""
        self._last = (step, total, more)
        if self._live:
            print("\r" + self._text(step, total, more).ljust(100)[:100], end="", flush=True)
        elif time.monotonic() - self._line_at >= 10:
            self._line_at = time.monotonic()
            print(self._text(step, total, more), flush=True)

    def end(self) -> None:
        """Show the full bar."""
        total = self._last[1] if self._last else 1
        text = self._text(total, total, "")
        print("\r" + text.ljust(100) if self._live else text, flush=True)

    def _text(self, step: int, total: int, more: str) -> str:
        done = WIDTH * step // max(1, total)
        return f"{self.label} [{'#' * done}{'-' * (WIDTH - done)}] {step}/{total}  {more}"


def clock(seconds: float) -> str:
    """Minutes and seconds, as 3:07."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _read(server: ComfyServer, prefix: str, count: int) -> torch.Tensor:
    import numpy as np

    found = []
    for number in range(count):
        (path,) = server.output.glob(f"{prefix}_{number:03}_*.png")
        with Image.open(path) as picture:
            found.append(torch.from_numpy(np.asarray(picture.convert("RGB")).copy()))
    return torch.stack(found).float() / 255


def _image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().numpy())


def _grid(before: torch.Tensor, after: torch.Tensor, prompts: concept.Prompts) -> Image.Image:
    """Six prompts for the concept and two others."""
    count = len(prompts) - OTHERS
    chosen = [*range(min(6, count)), count, count + 1]
    rows = [(prompts[i][0], _image(before[i]), _image(after[i])) for i in chosen]
    drawings = f"{len(concept.PAIRS)} drawings; the last two prompts have none"
    title = f"graft-mini learns a '{concept.WORD}' from {drawings}"
    return pictures.pairs(rows, title)


def _scores(
    before: torch.Tensor, after: torch.Tensor, prompts: concept.Prompts, samples: int
) -> dict[str, dict[str, float]]:
    parts = {"concept": slice(0, samples), "others": slice(samples, None)}
    return {
        f"{name} {when}": concept.found(images[part], prompts[part])
        for name, part in parts.items()
        for when, images in zip(WHEN, (before, after), strict=True)
    }


def _table(scores: dict[str, dict[str, float]], samples: int) -> list[str]:
    lines = [f"{'right by the scorer, of':24}{'before':>9}{'after':>9}"]
    for name, count in (("concept", samples), ("others", OTHERS)):
        before, after = (scores[f"{name} {when}"] for when in WHEN)
        label = "prompts for the concept" if name == "concept" else "other prompts"
        lines.append(f"{count} {label}")
        for kind in ("shape", "colour", "background", "all"):
            said = "all three" if kind == "all" else kind
            lines.append(f"  {said:22}{before[kind]:9.0%}{after[kind]:9.0%}")
    reached = scores["concept after"]["all"]
    bar = "reached" if reached >= BAR else "not reached"
    return [*lines, "", f"concept score {reached:.0%}; the bar is {BAR:.0%}: {bar}"]


if __name__ == "__main__":
    sys.exit(main())
