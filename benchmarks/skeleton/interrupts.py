# SPDX-License-Identifier: Apache-2.0
"""Runs on a real server that are interrupted at random moments until they are whole, and what that left behind."""

import json
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.host.server import ComfyServer

from . import graphs, runs

STEPS = 20
FOLDER = "interrupts"
PICTURES = tuple(sorted((graphs.ROOT / "assets" / "concepts" / "shape").glob("*.*"))[:4])
WARM = 10  # interrupts until the memory has to stay as it is
FRESH_SHARE, EMPTY_SHARE = (
    0.25,
    0.15,
)  # of the interrupts, after which everything is encoded, or loaded, again


@dataclass
class Trail:
    """What a number of interrupts left behind.

    Attributes:
        reached: What was done when each came: nothing, ``prepared``, the number of steps, or ``trained``.
        lost: What was not there afterwards although it was done.
        changed: After which of them the base model's latents were others.
        unequal: The whole runs whose LoRA or samples are not those of the run that nobody interrupted.
        whole: How many runs came to their end.
        memory: MiB of the server's process after each, where the system tells.
        seconds: How long all of it took.
    """

    reached: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    whole: int = 0
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """How much the memory grew after the first ``WARM``: the last ones' median over that of those after these."""
        later = self.memory[WARM:]
        tenth = max(1, len(later) // 10)
        return _median(later[-tenth:]) / _median(later[:tenth]) - 1


class Interrupts:
    """One graph, queued again and again and interrupted: it encodes, trains, draws, saves, and samples what it made.

    Args:
        server: Where it runs.
        seed: Of the moments.
    """

    def __init__(self, server: ComfyServer, seed: int = 0) -> None:
        self.server, self._random = server, random.Random(seed)
        for path in PICTURES:
            server.put_input(path, f"{FOLDER}/{path.name}")
        self._base = self._sampled_base()
        started = time.monotonic()
        self._whole, self._latent = self._finished("never", self.queue("never"))
        self.length_s = time.monotonic() - started

    def queue(self, name: str) -> str:
        """Queue the graph; runs of different names train the same."""
        graph = graphs.Mini(self.server)
        settings = {"steps": 2, "every": 10, "at_start": False, "rows": "all"}
        preview = graph.add("GraftPreview", prompts=graphs.PROMPT, **settings)
        network = graph.add("GraftNetwork", rank=2)
        objective = graph.add("GraftObjective", preserve=0.0)
        parts = {"network": [network, 0], "objective": [objective, 0], "preview": [preview, 0]}
        kept = {"autosave_every": 4, "save_every": 8, "name": name}
        data = graph.dataset(FOLDER)
        node = graph.train("GraftTrain", dataset=data, steps=STEPS, **parts, **kept)
        graph.save(node, filename=name)
        graph.sample([node, 0], f"latents/{name}")
        return self.server.queue(graph.prompt)

    def go(self, count: int) -> Trail:
        """Interrupt so many times; the runs that were begun are let go to their end."""
        trail, started = Trail(), time.monotonic()
        name, done, still = "cut_000", 0, 0
        for number in range(count):
            prompt_id = self.queue(name)
            left = 1 - 0.7 * done / STEPS  # of the run, of which encoding and drawing are a part
            longer = (
                1 + still / 2
            )  # where a machine has become slower, no run would get any further
            time.sleep(self._random.uniform(0, self.length_s * left * longer))
            self.server.interrupt()
            entry = self.server.wait(prompt_id, check=False)
            kinds = {kind for kind, _ in entry["status"]["messages"]}
            if "execution_error" in kinds:
                trail.lost.append(f"{name} failed: {entry['status']['messages'][-1]}")
            is_cut = "execution_interrupted" in kinds
            before, done = done, self._look(trail, prompt_id, name, done, is_cut)
            still = still + 1 if is_cut and done == before else 0
            if not torch.equal(self._sampled_base(), self._base):
                trail.changed.append(number)
            if not is_cut:
                self._compare(trail, name, prompt_id)
                name, done = f"cut_{number + 1:03}", 0
            trail.memory += self._resident()
            self._cold()
        self._compare(trail, name, self.queue(name))
        trail.seconds = time.monotonic() - started
        return trail

    def _look(self, trail: Trail, prompt_id: str, name: str, done: int, is_cut: bool) -> int:
        """Note how far a prompt came, and what should be there of it and is not; returns the steps that are kept."""
        rows = graphs.messages(self.server, prompt_id)
        started = [row["step"] for row in rows if row["kind"] == "start" and row["total"] == STEPS]
        ended = [row for row in rows if row["kind"] == "ended"]
        points = [point[0] for row in rows for point in row.get("points", [])]
        begun = [row["facts"] for row in rows if row["kind"] == "start" and row["facts"]]
        if begun and started[-1] != done:
            trail.lost.append(f"{name} had {done} steps and went on from {started[-1]}")
        if any(b - a != 1 for a, b in pairwise(points)):
            trail.lost.append(f"{name} did not train step by step: {points}")
        reached = max(points, default=done)
        is_trained = any(row["state"] == "done" for row in ended)
        trail.reached.append(
            "trained"
            if is_trained
            else str(reached)
            if points
            else "prepared"
            if begun
            else "nothing"
        )
        if is_cut and points and not is_trained:
            text = ended[-1]["text"]
            if (
                f"after {reached} steps is kept in output/loras" not in text
                or "goes on" not in text
            ):
                trail.lost.append(f"{name} was told: {text}")
            if not list(self.server.output.glob(f"loras/{name}_step{reached:06}*.safetensors")):
                trail.lost.append(f"{name} has no LoRA of step {reached}")
        if is_trained and is_cut:  # only the nodes after it were cut off
            if not list(self.server.output.glob(f"graft/*/{name}.safetensors")):
                trail.lost.append(f"{name} has no LoRA of the whole run")
            return 0
        return reached

    def _compare(self, trail: Trail, name: str, prompt_id: str) -> None:
        lora, latent = self._finished(name, prompt_id)
        trail.whole += 1
        if lora != self._whole or not torch.equal(latent, self._latent):
            trail.unequal.append(name)

    def _finished(self, name: str, prompt_id: str) -> tuple[Any, torch.Tensor]:
        """The tensors and facts of a whole run's LoRA, and the latent of its MODEL."""
        self.server.wait(prompt_id)
        latent = graphs.latent(self.server, f"latents/{name}")
        data = graphs.loras(self.server)[f"{name}.safetensors"]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"].pop("modelspec.title")
        return (header, data[8 + length :]), latent

    def _sampled_base(self) -> torch.Tensor:
        """The latent of graft-mini itself, sampled anew: no training's graph has this seed."""
        graph = graphs.Mini(self.server)
        graph.sample(graph.model, "latents/base", seed=7, steps=2)
        self.server.run(graph.prompt)
        return graphs.latent(self.server, "latents/base")

    def _cold(self) -> None:
        """Now and then, make the next run encode everything anew, or the server load everything anew."""
        if self._random.random() < FRESH_SHARE:
            for path in sorted((self.server.output / "graft" / "cache").rglob("*.tensors")):
                path.unlink()
        if self._random.random() < EMPTY_SHARE:
            runs.forget(self.server)

    def _resident(self) -> list[float]:
        process = self.server.process
        status = Path(f"/proc/{process.pid}/status") if process is not None else Path("none")
        if not status.is_file():
            return []
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmRSS")]
        return [int(line.split()[1]) / 1024]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
