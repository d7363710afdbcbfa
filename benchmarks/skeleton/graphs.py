# SPDX-License-Identifier: Apache-2.0
"""API prompts for a real server, built node by node, and what a run on it left behind."""

import json
from pathlib import Path
from typing import Any

from tests.host.server import ComfyServer
from tests.host.workflow import inputs_of, is_widget, load, to_prompt

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "example_workflows" / "graft - train a LoRA.json"
SHAPE_FOLDER = "graft-examples/shape"
PROMPT = "a large red dax on a blue background"


class Graph:
    """An API prompt. A widget that is not given has the default that the server's schema says.

    Args:
        server: Tells the schemas.
    """

    def __init__(self, server: ComfyServer) -> None:
        self.prompt: dict[str, dict[str, Any]] = {}
        self._server = server

    def add(self, kind: str, **inputs: Any) -> str:
        """Add a node; a link is ``[id, output]``. Returns its id."""
        values = {}
        schema = self._server.object_info(kind)
        required = schema["input"].get("required", {})
        for name, type_, options in inputs_of(schema):
            if name in required and is_widget(type_, options):
                values[name] = _default(type_, options)
        key = str(len(self.prompt) + 1)
        self.prompt[key] = {"class_type": kind, "inputs": values | inputs}
        return key

    def set(self, node: str, **inputs: Any) -> None:
        """Change inputs of a node."""
        self.prompt[node]["inputs"] |= inputs

    def last(self, kind: str) -> str:
        """The node of a kind that was added last."""
        return nodes_of(self.prompt, kind)[-1]


class Mini(Graph):
    """A graph that begins with graft-mini.

    Args:
        server: Where it will run.
    """

    def __init__(self, server: ComfyServer) -> None:
        super().__init__(server)
        self.mini = self.add("GraftMiniModel")
        self.model, self.clip, self.vae = ([self.mini, slot] for slot in range(3))

    def dataset(self, folder: str = SHAPE_FOLDER, **values: Any) -> list[Any]:
        """The link of a dataset."""
        return [self.add("GraftLoadImages", folder=folder, resolution=64, **values), 0]

    def train(self, kind: str = "GraftTrainLora", **values: Any) -> str:
        """A training node on graft-mini and the example drawings; returns its id."""
        wires = {"model": self.model, "clip": self.clip, "vae": self.vae}
        wires["dataset"] = values.pop("dataset", None) or self.dataset()
        return self.add(kind, **{**wires, **values})

    def save(self, node: str, **values: Any) -> str:
        """The node that saves what ``node`` trained, without the workflow in it."""
        return self.add("GraftSaveLora", adapter=[node, 6], **{"embed_workflow": False, **values})

    def sample(
        self,
        model: list[Any],
        prefix: str,
        *,
        prompt: str = PROMPT,
        seed: int = 1,
        steps: int = 4,
        negative: list[Any] | None = None,
        latent: bool = True,
    ) -> str:
        """Sample one 64 x 64 picture; its latent (or picture) is saved as ``prefix``. Returns the KSampler."""
        text = self.add("CLIPTextEncode", clip=self.clip, text=prompt)
        empty = self.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        if negative is None:
            negative = [self.add("CLIPTextEncode", clip=self.clip, text=""), 0]
        conds = {"positive": [text, 0], "negative": negative, "latent_image": [empty, 0]}
        settings = {"seed": seed, "steps": steps, "cfg": 4.0, "sampler_name": "euler"}
        made = self.add("KSampler", model=model, **conds, **settings)
        if latent:
            self.add("SaveLatent", samples=[made, 0], filename_prefix=prefix)
        else:
            decoded = self.add("VAEDecode", samples=[made, 0], vae=self.vae)
            self.add("SaveImage", images=[decoded, 0], filename_prefix=prefix)
        return made

    def stock_lora(self, name: str) -> list[Any]:
        """The MODEL with a saved LoRA through the stock loader."""
        loader = "LoraLoaderModelOnly"
        return [self.add(loader, model=self.model, lora_name=name, strength_model=1.0), 0]


def _default(kind: Any, options: dict[str, Any]) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options") or []
    empty = {"STRING": "", "INT": 0, "FLOAT": 0.0, "BOOLEAN": False}
    fallback = choices[0] if choices else empty.get(str(kind))
    return options.get("default", fallback)


def shipped(server: ComfyServer, path: Path = WORKFLOW) -> dict[str, dict[str, Any]]:
    """The API prompt of a shipped workflow, as the browser would send it."""
    return to_prompt(load(path), server.object_info())


def nodes_of(prompt: dict[str, dict[str, Any]], kind: str) -> list[str]:
    """Ids of the nodes of a kind."""
    return [key for key, node in prompt.items() if node["class_type"] == kind]


def shown(entry: dict[str, Any], node: str) -> str:
    """The text that a node showed."""
    return "\n".join(entry["outputs"].get(node, {}).get("text", ()))


def loras(server: ComfyServer) -> dict[str, bytes]:
    """The files of output/loras by name."""
    folder = server.output / "loras"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def latent(server: ComfyServer, prefix: str) -> Any:
    """The newest latent that was saved under a prefix."""
    import safetensors.torch

    found = sorted(server.output.glob(f"{prefix}_*.latent"))
    return safetensors.torch.load_file(str(found[-1]))["latent_tensor"]


def messages(server: ComfyServer, prompt_id: str) -> list[dict[str, Any]]:
    """The ``graft.run`` messages of a prompt, each with the ``time`` at which it came."""
    return [
        {"time": event["time"], **event["data"]}
        for event in server.events_of(prompt_id, "graft.run")
    ]


def log_rows(server: ComfyServer, run: str) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl."""
    path = server.output / "graft" / run / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
