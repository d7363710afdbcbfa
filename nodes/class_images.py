# SPDX-License-Identifier: Apache-2.0
"""Class images of prior preservation."""

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..host import class_images, paths
from ..trainers.data import Dataset
from .schema import GraftDataset, field, output, schema, socket, text, whole


class ClassImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftClassImages",
            display_name="Class Images",
            category="graft/data",
            description=(
                "Adds class images to a dataset: pictures of other things of the kind, which keep the model from "
                "taking every dog for yours (DreamBooth). They come from a folder, or the model draws what is missing."
            ),
            search_aliases=["prior preservation", "dreambooth", "regularization images"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(GraftDataset, "dataset", "The pictures of the concept."),
                text(
                    "class_prompt",
                    "What class images show: a photo of a dog. Missing ones are drawn with it, and it is the caption "
                    "of those that have none.",
                    multiline=True,
                ),
                whole(
                    "number",
                    "How many class images there have to be; what is missing is drawn. 100 to 200 for a subject.",
                    100,
                    min=1,
                    max=100_000,
                ),
                field(Dataset, "class_weight", "weight", max=100.0, step=0.05),
                text(
                    "name",
                    "Folder under output/graft/class that drawn class images are kept in, for the next run.",
                    "class",
                ),
                socket(
                    GraftDataset,
                    "class_images",
                    "Pictures of the class, from Load Images For Training.",
                    optional=True,
                ),
                socket(
                    io.Model, "model", "Draws what is missing: the model to train.", optional=True
                ),
                socket(
                    io.Clip, "clip", "Encodes class_prompt. The one of the model.", optional=True
                ),
                socket(
                    io.Vae, "vae", "Decodes what is drawn. The one of the model.", optional=True
                ),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "The dataset with its class images, to train on."),
                output(io.String, "report", "How many class images there are, and where from."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            if name is not None:
                paths.safe_name(name, "name of the class images")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        dataset: Any,
        class_prompt: str,
        number: int,
        weight: float,
        name: str,
        class_images: Any = None,
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        made, report = add(
            dataset,
            class_prompt,
            number,
            name,
            class_images,
            (model, clip, vae),
            cls.hidden.unique_id,
        )
        return io.NodeOutput(dataclasses.replace(made, class_weight=weight), report)


def add(
    dataset: Dataset,
    prompt: str,
    number: int,
    name: str,
    given: Dataset | None,
    wires: tuple[Any, Any, Any],
    node_id: str | None,
) -> tuple[Dataset, str]:
    """The dataset with class images, drawn by the MODEL, CLIP and VAE of ``wires`` where all are there."""
    is_complete = all(wire is not None for wire in wires)
    painter = class_images.Painter(*wires, node_id) if is_complete else None
    return class_images.with_class_images(dataset, prompt, number, name, given, painter)


NODES = [ClassImages]
