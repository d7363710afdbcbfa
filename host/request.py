# SPDX-License-Identifier: Apache-2.0
"""What a training node asks of the engine, and what can be wrong with it before anything begins."""

from dataclasses import dataclass, field
from typing import Any

from ..adapters import NETWORKS, Network
from ..adapters.file import AdapterFile
from ..adapters.targets import NONE
from ..adapters.tokens import Tokens
from ..trainers.data import Dataset
from ..trainers.objectives import INSTANCES, Objective
from ..trainers.objectives.check import check as check_objective
from ..trainers.optimizers import Optimizer
from ..trainers.plan import Plan
from ..trainers.preview import Preview
from ..trainers.state import State
from .data import autoencoder
from .data.priors import BaseText
from .model import sampling
from .model.trainee import refuse_untrainable
from .preview import sampled as preview
from .text import tokens as host_tokens
from .text.texts import prompts


@dataclass(frozen=True, eq=False)
class Request:
    """What a training node asks for: values from its sockets and widgets."""

    model: Any
    dataset: Dataset
    vae: Any = None
    clip: Any = None
    network: Network = field(default_factory=NETWORKS.get("lora"))
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    plan: Plan = field(default_factory=Plan)
    preview: Preview | None = None
    sampler: Any = None
    sigmas: Any = None
    state: State | None = None
    validation: Dataset | None = None
    name: str = "graft"
    node_id: str | None = None
    workflow_id: str | None = None
    start_from: AdapterFile | None = None
    tokens: Tokens | None = None
    text_network: Network | None = None

    @property
    def settings(self) -> str:
        """What the result depends on beside model, data, length and seed."""
        parts: tuple[Any, ...] = (self.network, self.objective, self.optimizer)
        parts += (self.plan.effective_batch,)
        parts += tuple(part for part in (self.tokens, self.text_network) if part is not None)
        return ", ".join(map(repr, parts))


def check(request: Request) -> None:
    """Find what is wrong with the input before anything is loaded or written.

    Raises:
        ValueError: Says what came, what is allowed and what to do.
    """
    for kind in ("clip", "vae"):
        if getattr(request, kind) is None:
            raise ValueError(f"No {kind.upper()} is connected; training needs that of the model.")
    _check_dataset(request)
    _check_text(request)
    request.optimizer.check(request.model.load_device)
    if request.objective.preserve > 0 and request.objective.preserve_on == INSTANCES:
        BaseText(request.dataset, request.objective, request.tokens.names if request.tokens else ())
    if request.plan.patience and request.validation is None:
        raise ValueError(
            f"patience is {request.plan.patience} but nothing is connected to validation: connect pictures that are "
            "not trained on, or set patience to 0."
        )
    refuse_untrainable(request.model)
    wired = sampling.of_model(request.model)
    check_objective(request.objective, wired, request.plan.effective_batch)
    autoencoder.check_family(request.vae, request.model)
    network = request.model.model.diffusion_model
    for name in request.network.plan(request.network.targets(network)):
        if "forward" in network.get_submodule(name).__dict__:
            raise ValueError(
                f"Layer {name} of the MODEL carries an adapter that another node hooked in (a bypass LoRA, "
                "say): connect the model from before that node, or load the LoRA with Load LoRA."
            )
    if request.preview is not None:
        preview.check(request.preview)
    _check_beginning(request)


def _check_beginning(request: Request) -> None:
    """What a run goes on from."""
    if request.state is not None and request.state.seed != request.plan.seed:
        raise ValueError(
            f"The state was trained with seed {request.state.seed}, not {request.plan.seed}; use the same seed."
        )
    if request.state is not None and request.start_from is not None:
        raise ValueError(
            f"Both state (after step {request.state.step}) and start_from ('{request.start_from.name}') are connected, "
            "and a training can begin with one of them only: disconnect start_from to go on with the state and its "
            "optimizer, or state to train the LoRA further from step 0."
        )


def _check_text(request: Request) -> None:
    """What is to be learned of text."""
    words, network = request.tokens, request.text_network
    if network is not None:
        network.targets(request.clip.cond_stage_model)
        host_tokens.trainable(request.clip)
    if words is None:
        if request.network.blocks.strip() == NONE and network is None:
            raise ValueError(
                "blocks is none, and neither tokens nor text_network is connected, so nothing would be trained: choose "
                "blocks, or connect a Concept Token."
            )
        return
    host_tokens.trainable(request.clip)
    texts = {t for i in range(len(request.dataset)) for t in prompts(request.dataset, i)}
    named = {name for text in texts for name in words.found(text)}
    absent = [name for name in words.names if name not in named]
    if absent:
        raise ValueError(
            f"No caption of the dataset names {', '.join(absent)}, so that it would learn nothing; a caption reads: "
            f"{min(texts)[:80]!r}. Set trigger to {absent[0]} in the dataset, or write it into the captions."
        )
    if words.retraction and getattr(request.optimizer.algorithm, "averages", False):
        raise ValueError(
            f"retraction is {words.retraction:g}, and the optimizer averages by itself, which would undo it: set "
            "retraction to 0, or choose adamw."
        )


def _check_dataset(request: Request) -> None:
    items, batch = request.dataset.items, request.plan.batch_size
    count = sum(request.dataset.repeats)
    if batch > count:
        counted = "" if count == len(items) else ", repeats counted"
        raise ValueError(
            f"batch_size is {batch} but the dataset has {count} pictures{counted}; lower batch_size or add pictures."
        )
    if all(item.weight == 0 for item in items):
        raise ValueError(
            "All pictures of the dataset have weight 0, so nothing would be learned from them: give some of them more "
            "in weights of Join Datasets, or in the column weight of metadata.jsonl or metadata.csv."
        )


def check_state(state: State, request: Request, model_digest: str) -> tuple[str, ...]:
    """Compare a state with the run that shall go on from it.

    Args:
        state: The state on the wire.
        request: The run.
        model_digest: Digest of the MODEL on the wire.

    Returns:
        What the user should know.

    Raises:
        ValueError: The state was trained on another model.
    """
    if state.model and state.model != model_digest:
        raise ValueError(
            "The state was trained on another MODEL than the one connected: connect the model from "
            "before the first training node, not its output, which has the LoRA in it already."
        )
    if state.settings and state.settings != request.settings:
        return (f"The state was trained with other settings: {state.settings}.",)
    return ()
