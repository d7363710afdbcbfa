# SPDX-License-Identifier: Apache-2.0
"""Runs on a real server, measured: interrupted, repeated, continued, saved, watched."""

import time
from itertools import pairwise
from typing import Any

import torch

from tests.host.server import ComfyServer

from . import graphs

SHORT = {"rank": 2, "batch_size": 2, "preserve": 0.0}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, as a share of the range of values."""
    spread = float(one.max() - one.min())
    return float((one - other).abs().max()) / spread


def sampled(server: ComfyServer, prefix: str, lora: str = "", steps: int = 4) -> torch.Tensor:
    """The latent of a fixed prompt and seed, sampled anew with graft-mini and perhaps a LoRA."""
    graph = graphs.Mini(server)
    model = graph.stock_lora(lora) if lora else graph.model
    sampler = graph.sample(model, prefix, steps=steps)
    prompt_id = server.queue(graph.prompt)
    server.wait(prompt_id)
    cached = [e["data"]["nodes"] for e in server.events_of(prompt_id, "execution_cached")]
    if any(sampler in nodes for nodes in cached):
        raise RuntimeError("the host did not sample again, it had the result")
    return graphs.latent(server, prefix)


def interrupted(server: ComfyServer, name: str = "stopped", steps: int = 400) -> dict[str, Any]:
    """Interrupt a run from outside after a few steps.

    Returns:
        ``state`` of the run and of the prompt, ``steps_after`` the request, ``new_files`` in
        output/loras, whether the stock loader's ``samples_differ`` from the base, and the
        ``change`` of the base model's samples (0 is bit-equal).
    """
    before = sampled(server, f"{name}_before")
    known = set(graphs.loras(server))
    graph = graphs.Mini(server)
    graph.train(name=name, steps=steps, **SHORT)
    prompt_id = server.queue(graph.prompt)
    message = server.wait_event(
        lambda event: (
            event["type"] == "graft.run"
            and event["data"]["prompt_id"] == prompt_id
            and event["data"]["kind"] == "progress"
            and event["data"]["step"] >= 2
        )
    )
    server.interrupt()
    asked = time.time()
    entry = server.wait(prompt_id, check=False)
    run = message["data"]["run"]
    after = sampled(server, f"{name}_after")
    new = sorted(set(graphs.loras(server)) - known)
    rows = graphs.log_rows(server, run)
    with_lora = sampled(server, f"{name}_lora", new[0]) if new else before
    kinds = {kind for kind, _ in entry["status"]["messages"]}
    return {
        "state": rows[-1].get("state"),
        "prompt_interrupted": "execution_interrupted" in kinds,
        "steps_after": sum(row["kind"] == "progress" and row["time"] > asked for row in rows),
        "new_files": new,
        "samples_differ": not torch.equal(with_lora, before),
        "lora_complaints": server.log().count("lora key not loaded"),
        "change": 0.0 if torch.equal(after, before) else max(difference(before, after), 1e-9),
    }


def repeated(server: ComfyServer, name: str = "twin", steps: int = 4, **values: Any) -> bool:
    """Whether a graph that is run twice, with a fresh model, gives the same file bit for bit."""
    files = []
    for number in (1, 2):
        graph = graphs.Mini(server)
        node = graph.train(name=name, steps=steps, **(SHORT | values))
        graph.save(node, filename=f"{name}_{number}")
        prompt_id = server.queue(graph.prompt)
        server.wait(prompt_id)
        if not graphs.messages(server, prompt_id):
            raise RuntimeError("the host did not train again, it had the result")
        files.append(graphs.loras(server)[f"{name}_{number}.safetensors"])
        forget(server)
    return files[0] == files[1]


def forget(server: ComfyServer) -> None:
    """Make the host drop its cached outputs and models, as a fresh start would."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    graph = graphs.Graph(server)
    image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0)
    graph.add("SaveImage", images=[image, 0], filename_prefix="blank")
    server.run(graph.prompt)


def continued(server: ComfyServer, name: str = "parts") -> bool:
    """Whether 3 + 3 of 6 steps, with samples and another training between them, equal 6."""
    forget(server)  # so that sampling and training both start from a model fresh from disk
    graph = graphs.Mini(server)
    graph.sample(graph.model, f"{name}_0")
    plan = {"batch_size": 2, "total_steps": 6, "name": name}
    network = [graph.add("GraftNetwork", rank=2), 0]
    data = graph.dataset()
    common = {"dataset": data, "network": network, **plan}
    head = graph.train("GraftTrain", steps=3, **common)
    graph.sample([head, 0], f"{name}_3")
    on_top = graph.add("GraftNetwork", rank=2, blocks="all")
    other = graph.train(
        "GraftTrain", dataset=data, network=[on_top, 0], steps=2, batch_size=1, name="other"
    )
    graph.set(other, model=[head, 0])
    graph.sample([other, 0], f"{name}_other")
    tail = graph.train("GraftTrain", steps=3, state=[head, 3], **common)
    graph.sample([tail, 0], f"{name}_6")
    graph.save(tail, filename=f"{name}_tail")
    server.run(graph.prompt)
    graph = graphs.Mini(server)
    network = [graph.add("GraftNetwork", rank=2), 0]
    whole = graph.train("GraftTrain", steps=6, network=network, **plan)
    graph.save(whole, filename=f"{name}_whole")
    graph.sample([whole, 0], f"{name}_whole")
    server.run(graph.prompt)
    files = graphs.loras(server)
    is_same = files[f"{name}_tail.safetensors"] == files[f"{name}_whole.safetensors"]
    pictures = [graphs.latent(server, f"{name}_{end}") for end in ("6", "whole")]
    return is_same and torch.equal(*pictures)


def reloaded(server: ComfyServer, name: str = "wire", steps: int = 6) -> tuple[float, float]:
    """How far the stock loader's samples of the saved file are from those of the MODEL on the wire.

    Returns:
        That difference, and the one between the MODEL on the wire and the base, for scale.
    """
    graph = graphs.Mini(server)
    node = graph.train(name=name, steps=steps, learning_rate=0.01, **SHORT)
    graph.save(node, filename=name)
    graph.sample([node, 0], f"{name}_wire", steps=20)
    graph.sample(graph.model, f"{name}_base", steps=20)
    server.run(graph.prompt)
    forget(server)
    loaded = sampled(server, f"{name}_loaded", f"{name}.safetensors", steps=20)
    wire = graphs.latent(server, f"{name}_wire")
    return difference(wire, loaded), difference(wire, graphs.latent(server, f"{name}_base"))


def watched(server: ComfyServer, name: str = "seen", steps: int = 40) -> dict[str, Any]:
    """The messages of a run, as a browser gets them.

    Returns:
        ``kinds`` in order, ``gaps`` in seq, ``steps`` that came, the ``rate`` of progress messages
        a second at its highest, and what the history knows after half of them (``rest``).
    """
    graph = graphs.Mini(server)
    node = graph.train(name=name, steps=steps, **SHORT)
    prompt_id = server.queue(graph.prompt)
    server.wait(prompt_id)
    server.wait_event(
        lambda event: (
            event["type"] == "execution_success" and event["data"]["prompt_id"] == prompt_id
        )
    )
    got = graphs.messages(server, prompt_id)
    middle = got[len(got) // 2]
    history = server.get(f"/graft/runs/{middle['run']}?since={middle['seq']}")
    later = [row[0] for message in got[len(got) // 2 + 1 :] for row in message.get("points", [])]
    times = [message["time"] for message in got if message["kind"] == "progress"]
    busiest = max((sum(0 <= t - first < 1 for t in times) for first in times), default=0)
    return {
        "kinds": [message["kind"] for message in got],
        "gaps": sum(b["seq"] - a["seq"] != 1 for a, b in pairwise(got)),
        "steps": [row[0] for message in got for row in message.get("points", [])],
        "busiest_second": busiest,
        "nodes": {message["node"] for message in got} == {node},
        "rest": [row[1] for row in history["points"]] == later,
        "state": history["state"],
    }


def finished(server: ComfyServer, name: str = "early", steps: int = 400) -> dict[str, Any]:
    """End a run early and well from outside.

    Returns:
        ``state`` of the run, ``steps`` done, and whether the nodes after it ran (``saved``).
    """
    graph = graphs.Mini(server)
    node = graph.train(name=name, steps=steps, **SHORT)
    graph.save(node, filename=name)
    prompt_id = server.queue(graph.prompt)
    message = server.wait_event(
        lambda event: (
            event["type"] == "graft.run"
            and event["data"]["prompt_id"] == prompt_id
            and event["data"]["kind"] == "progress"
        )
    )
    run = message["data"]["run"]
    server.post(f"/graft/runs/{run}/finish")
    server.wait(prompt_id)
    history = server.get(f"/graft/runs/{run}")
    return {
        "state": history["state"],
        "steps": history["step"],
        "saved": f"{name}.safetensors" in graphs.loras(server),
    }
