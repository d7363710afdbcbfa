# SPDX-License-Identifier: Apache-2.0
"""DreamBooth: the weights of the model themselves, or a LoRA, on pictures of a subject beside pictures of its class."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..adapters.full import Full
from ..adapters.lora import LoRA
from ..host.data.class_images import Painter, with_class_images
from ..trainers.data import Dataset
from ..trainers.optimizers import Optimizer
from ..trainers.plan import AUTO, CONTINUE, Plan
from .engine import (
    EXTRAS,
    HIDDEN,
    LATER,
    LORA_NAME,
    RUN_SEED,
    STARTS,
    WIRES,
    check_name,
    keeping,
    outputs,
    sockets,
    train,
)
from .length import length
from .recipe_parts import course, how, rate, weighting
from .schema import GraftDataset, choice, field, one_of, schema, seed, socket, switch, text, whole

FULL, LORA = "full weights", "LoRA"
RATES = {FULL: 5e-6, LORA: 1e-4}
CLASSES = "class"  # the folder under output/graft/class, as Class Images names it
NO_CLASSES = (
    "There are no class images: the class will drift towards the subject, so that other dogs will look like this one. "
    "Set class_prompt and class_images, or connect class_dataset."
)
SAVING = "All weights are in MODEL{}: wire {} into Save Checkpoint (ModelSave for the model alone)."


def prior_inputs(count: int = 100) -> list[Any]:
    """The widgets of class images, of which there are ``count`` by default."""
    return [
        text(
            "class_prompt",
            "What the subject is one of, without its name: a photo of a dog. Class images are drawn with it, and it is "
            "the caption of given ones that have none.",
        ),
        whole(
            "class_images",
            "How many class images there have to be; the model draws what is missing, once, into "
            "output/graft/class. 100 to 200 for a subject. 0: those of class_dataset alone, or none.",
            count,
            min=0,
            max=100_000,
        ),
        field(Dataset, "class_weight", "prior_weight", step=0.05),
    ]


def prior_socket() -> Any:
    """The socket of given class images."""
    return socket(
        GraftDataset,
        "class_dataset",
        "Class images, with captions that do not name the subject, or without: real photographs hold the class better "
        "than drawn ones.",
        optional=True,
    )


def with_prior(node: Any, inputs: dict[str, Any]) -> Dataset:
    """The dataset of a node's inputs with its class images; without any, with a warning.

    Args:
        node: The node's class.
        inputs: The arguments of its ``execute``.
    """
    dataset, given, count = inputs["dataset"], inputs["class_dataset"], inputs["class_images"]
    if given is None and (count == 0 or dataset.classes is not None):
        if dataset.classes is not None:  # from Class Images
            return replace(dataset, class_weight=inputs["prior_weight"])
        return replace(dataset, warnings=(*dataset.warnings, NO_CLASSES))
    model, clip, vae = (inputs[name] for name in ("model", "clip", "vae"))
    painter = Painter(model, clip, vae, getattr(node.hidden, "unique_id", None))
    made = with_class_images(dataset, inputs["class_prompt"], count, CLASSES, given, painter)
    return replace(made, class_weight=inputs["prior_weight"])


class TrainDreamBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTrainDreamBooth",
            display_name="Train DreamBooth",
            category="graft/training",
            description=(
                "Teaches the model a subject from a few pictures while pictures of its class keep the class as it is. "
                "It trains the weights themselves, for Save Checkpoint, or a LoRA."
            ),
            search_aliases=[
                "dreambooth",
                "full fine-tuning",
                "checkpoint training",
                "prior preservation",
            ],
            is_output_node=True,
            hidden=list(HIDDEN),
            inputs=[
                *sockets(*WIRES),
                *sockets(*EXTRAS, optional=True),
                *length(800),
                choice(
                    "network",
                    "full weights: all of the model, at 16 bytes of memory for each parameter beside it. LoRA: a "
                    "small file and a fraction of the memory.",
                    (FULL, LORA),
                ),
                field(LoRA, "rank", max=4096),
                switch(
                    "train_text_encoder",
                    "Train the text encoders in the same way: better faces, more memory.",
                    False,
                ),
                rate(
                    "learning_rate",
                    "Peak learning rate. 0 takes 5e-6 for full weights and 1e-4 for a LoRA.",
                    0.0,
                ),
                rate("text_learning_rate", "That of the text encoders; 0 is the model's.", 0.0),
                course(),
                field(Plan, "batch_size"),
                field(Plan, "accumulate", advanced=True),
                seed(RUN_SEED),
                *prior_inputs(),
                field(Full, "blocks"),
                weighting(),
                field(Optimizer, "ema_decay", step=0.0001),
                field(Plan, "precision", advanced=True),
                field(Plan, "checkpointing", advanced=True),
                text("name", LORA_NAME, "graft"),
                *sockets(*LATER, optional=True),
                *keeping("autosave_minutes", "save_every", "memory_limit", "offload"),
                *sockets(*STARTS, optional=True),
                prior_socket(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return check_name(name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        steps: int,
        steps_unit: str,
        network: str,
        rank: int,
        train_text_encoder: bool,
        learning_rate: float,
        text_learning_rate: float,
        schedule: str,
        batch_size: int,
        accumulate: int,
        seed: int,
        class_prompt: str,
        class_images: int,
        prior_weight: float,
        blocks: str,
        weight: str,
        ema_decay: float,
        precision: str,
        checkpointing: str,
        name: str,
        preview: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
        state: Any = None,
        validation: Any = None,
        when_found: str = CONTINUE,
        autosave_minutes: float = 10.0,
        save_every: int = 0,
        memory_limit: int = 0,
        offload: str = AUTO,
        start_from: Any = None,
        class_dataset: Any = None,
    ) -> io.NodeOutput:
        inputs, is_full = locals(), network == FULL
        more = {"ema_decay": ema_decay, "text_lr": text_learning_rate}
        return train(
            cls,
            inputs,
            saving(train_text_encoder) if is_full else "",
            dataset=with_prior(cls, inputs),
            network=Full(blocks) if is_full else LoRA(rank, blocks=blocks),
            text_network=_of_text(is_full, rank) if train_text_encoder else None,
            **how(inputs, RATES[one_of("network", network, RATES)], **more),
        )


def _of_text(is_full: bool, rank: int) -> Full | LoRA:
    return Full() if is_full else LoRA(rank, blocks="attention")


def saving(with_text: bool) -> str:
    """What to do with a MODEL whose weights were trained."""
    return SAVING.format(*((" and CLIP", "both") if with_text else ("", "it")))


NODES = [TrainDreamBooth]
