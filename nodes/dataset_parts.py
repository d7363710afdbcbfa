# SPDX-License-Identifier: Apache-2.0
"""Datasets put together, taken apart, and looked at."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..host.data.class_images import Painter, fingerprint, with_class_images
from ..host.data.shown import shown
from ..host.files import paths
from ..trainers.data import Dataset, contact_sheet, describe, split
from ..trainers.data.changes import joined
from ..trainers.data.join import AS_GIVEN, BALANCES
from ..trainers.data.sheet import MOST
from .schema import GraftDataset, choice, field, number, output, schema, seed, socket, text, whole

_REPORT = "What the dataset holds now."


class JoinDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftJoinDatasets",
            display_name="Join Datasets",
            category="graft/data",
            description=(
                "Makes one dataset of several. Each keeps its own resolution, captions, buckets and trigger. For more "
                "than four, join again."
            ),
            search_aliases=["merge datasets", "combine datasets", "repeats", "balance"],
            inputs=[
                socket(GraftDataset, "dataset_1", "The first dataset."),
                socket(GraftDataset, "dataset_2", "The second dataset."),
                socket(GraftDataset, "dataset_3", "The third dataset.", optional=True),
                socket(GraftDataset, "dataset_4", "The fourth dataset.", optional=True),
                text(
                    "repeats",
                    "How often an epoch has the pictures of each dataset: one number for all, or one for each, with "
                    "commas between them.",
                    "1",
                ),
                text(
                    "weights",
                    "How much the pictures of each dataset count: one number for all, or one for each, with commas "
                    "between them.",
                    "1",
                ),
                choice(
                    "balance",
                    "as given: as the numbers above say. repeats: smaller datasets are repeated until they have about "
                    "as many pictures as the largest. "
                    "weights: each dataset counts as much as another, however many pictures it has.",
                    BALANCES,
                    AS_GIVEN,
                ),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "All pictures, for a training node."),
                output(io.String, "report", _REPORT),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset_1: Any,
        dataset_2: Any,
        repeats: str,
        weights: str,
        balance: str,
        dataset_3: Any = None,
        dataset_4: Any = None,
    ) -> io.NodeOutput:
        given = (dataset_1, dataset_2, dataset_3, dataset_4)
        datasets = [dataset for dataset in given if dataset is not None]
        made = joined(datasets, repeats, weights, balance)
        return io.NodeOutput(made, describe(made), ui=shown(made))


class SplitDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSplitDataset",
            display_name="Split Dataset",
            category="graft/data",
            description=(
                "Holds some pictures out, to measure the loss on what is not trained. Which ones depends on what they "
                "show, so that more pictures or other names do not reshuffle them; equal pictures stay together."
            ),
            search_aliases=["validation", "held out", "test set", "train split"],
            inputs=[
                socket(GraftDataset, "dataset", "The pictures."),
                number(
                    "share",
                    "Share of the pictures that is held out; at least one is on either side.",
                    0.1,
                    min=0.001,
                    max=0.999,
                ),
                seed("Which pictures are held out."),
            ],
            outputs=[
                output(GraftDataset, "training", "The pictures to train on."),
                output(
                    GraftDataset, "held out", "The pictures to measure on, without class images."
                ),
                output(io.String, "report", "What both hold."),
            ],
        )

    @classmethod
    def execute(cls, dataset: Any, share: float, seed: int) -> io.NodeOutput:
        training, held_out = split(dataset, share, seed)
        report = f"training:\n{describe(training)}\n\nheld out:\n{describe(held_out)}"
        return io.NodeOutput(
            training, held_out, report, ui=shown(training, held_out, names=("training", "held out"))
        )


class ClassImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftClassImages",
            display_name="Class Images",
            category="graft/data",
            description=(
                "Adds pictures of what the concept is one of, other dogs beside your dog, which are trained on, too, "
                "so that the model keeps them as they are (DreamBooth's prior preservation). What is missing is "
                "drawn by the model."
            ),
            search_aliases=[
                "prior preservation",
                "regularization images",
                "dreambooth",
                "reg images",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(GraftDataset, "dataset", "The pictures of the concept."),
                socket(
                    GraftDataset,
                    "classes",
                    "The class images, with captions that do not name the concept, a photo of a dog, or without any: "
                    "switch allow_no_caption on where they are loaded.",
                    optional=True,
                ),
                field(Dataset, "class_weight", "weight", step=0.05),
                text(
                    "class_prompt",
                    "What class images show: a photo of a dog. Missing ones are drawn with it, and it is the caption "
                    "of those that have none.",
                    optional=True,
                ),
                whole(
                    "number",
                    "How many class images there have to be; model, clip and vae draw what is missing. 100 to 200 for "
                    "a subject; 0 takes those of classes.",
                    0,
                    min=0,
                    max=100_000,
                    optional=True,
                ),
                text(
                    "name",
                    "Folder under output/graft/class where drawn class images are kept for the next run.",
                    "class",
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
                output(GraftDataset, "DATASET", "The pictures with their class images."),
                output(io.String, "report", _REPORT),
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
    def fingerprint_inputs(
        cls,
        weight: float | None,
        dataset: Any = None,
        classes: Any = None,
        class_prompt: str | None = "",
        number: int | None = 0,
        name: str | None = "class",
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
    ) -> str:
        return fingerprint(name) if name is not None else ""

    @classmethod
    def execute(
        cls,
        dataset: Any,
        weight: float,
        classes: Any = None,
        class_prompt: str = "",
        number: int = 0,
        name: str = "class",
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        painter = Painter(model, clip, vae, getattr(cls.hidden, "unique_id", None))
        made = with_class_images(dataset, class_prompt, number, name, classes, painter)
        changed = replace(made, class_weight=weight)
        return io.NodeOutput(changed, describe(changed), ui=shown(changed))


class DatasetPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftDatasetPreview",
            display_name="Dataset Preview",
            category="graft/data",
            description=(
                "Shows pictures as they are trained on, cropped and mirrored, with caption, bucket, repeats and the "
                "outline of a mask, and reports on the whole dataset."
            ),
            search_aliases=["contact sheet", "dataset report", "show dataset", "duplicates"],
            is_output_node=True,
            inputs=[
                socket(GraftDataset, "dataset", "What to show."),
                whole("count", "How many pictures are shown, at most.", 24, min=1, max=MOST),
                whole("first", "Number of the first picture that is shown, from 0.", 0, min=0),
                whole(
                    "view",
                    "Which crop or mirror image of each picture is shown, from 0; counted round.",
                    0,
                    min=0,
                ),
                whole("columns", "Pictures side by side.", 6, min=1, max=40),
            ],
            outputs=[
                output(io.Image, "IMAGE", "The contact sheet."),
                output(
                    io.String,
                    "report",
                    "Counts, buckets, captions, duplicates, pictures that are too small, and warnings.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, dataset: Any, count: int, first: int, view: int, columns: int
    ) -> io.NodeOutput:
        sheet = contact_sheet(dataset, count, first, view, columns)
        return io.NodeOutput(sheet, describe(dataset), ui=ui.PreviewImage(sheet, cls=cls))


NODES = [JoinDatasets, SplitDataset, ClassImages, DatasetPreview]
