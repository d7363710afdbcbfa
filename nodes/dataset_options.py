# SPDX-License-Identifier: Apache-2.0
"""How a dataset is trained on: its captions, its buckets and its masks."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..host.data.shown import shown
from ..trainers.data import (
    Captioning,
    Framing,
    check_texts,
    describe,
    list_texts,
    with_masks,
)
from ..trainers.data.changes import with_captioning, with_framing
from .schema import GraftDataset, field, output, schema, seed, socket, switch

_DATASET = "The pictures: from Load Images For Training, or joined ones, of which each is changed."


class Captions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftCaptions",
            display_name="Captions",
            category="graft/data",
            description=(
                "How captions are trained with: prefix and suffix, shuffled and dropped tags, wildcards, and steps "
                "without a caption. A few variants of each are made and encoded beforehand, and each step draws one."
            ),
            search_aliases=[
                "caption dropout",
                "shuffle tags",
                "keep tokens",
                "wildcards",
                "trigger word",
            ],
            inputs=[
                socket(GraftDataset, "dataset", _DATASET),
                field(Captioning, "prefix"),
                field(Captioning, "suffix"),
                field(Captioning, "add_trigger"),
                field(Captioning, "shuffle"),
                field(Captioning, "keep_tags"),
                field(Captioning, "tag_dropout", step=0.05),
                field(Captioning, "dropout", step=0.05),
                field(Captioning, "wildcards"),
                field(Captioning, "variants"),
                field(Captioning, "separator", advanced=True),
                seed("Decides on the variants; they do not depend on the seed of a training."),
                field(Captioning, "weighted", optional=True, advanced=True),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "The same pictures with these captions."),
                output(io.String, "texts", "The texts of the first pictures."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: Any,
        prefix: str,
        suffix: str,
        add_trigger: bool,
        shuffle: bool,
        keep_tags: int,
        tag_dropout: float,
        dropout: float,
        wildcards: bool,
        variants: int,
        separator: str,
        seed: int,
        weighted: bool = False,
    ) -> io.NodeOutput:
        captioning = Captioning(
            prefix=prefix,
            suffix=suffix,
            add_trigger=add_trigger,
            shuffle=shuffle,
            keep_tags=keep_tags,
            tag_dropout=tag_dropout,
            dropout=dropout,
            wildcards=wildcards,
            variants=variants,
            separator=separator,
            seed=seed,
            weighted=weighted,
        )
        changed = with_captioning(dataset, captioning)
        if wildcards:
            check_texts(changed)
        return io.NodeOutput(changed, list_texts(changed), ui=shown(changed))


class Buckets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftBuckets",
            display_name="Aspect Ratio Buckets",
            category="graft/data",
            description=(
                "Which sizes pictures are trained at, and how they are cropped and mirrored. Without this node they "
                "keep their shape, in sizes that 64 px divide, and are never scaled up."
            ),
            search_aliases=["bucket", "resolution", "flip", "random crop", "augmentation"],
            inputs=[
                socket(GraftDataset, "dataset", _DATASET),
                field(Framing, "buckets"),
                field(Framing, "step", step=8),
                field(Framing, "min_side", step=8),
                field(Framing, "max_side", step=8),
                field(Framing, "upscale"),
                field(Framing, "flip"),
                field(Framing, "crop"),
                field(Framing, "smallest_crop", step=0.05),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "The same pictures, framed like this."),
                output(io.String, "report", "The buckets, and how many pictures each has."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: Any,
        buckets: bool,
        step: int,
        min_side: int,
        max_side: int,
        upscale: bool,
        flip: bool,
        crop: str,
        smallest_crop: float,
    ) -> io.NodeOutput:
        framing = Framing(buckets, step, min_side, max_side, upscale, flip, crop, smallest_crop)
        changed = with_framing(dataset, framing)
        return io.NodeOutput(changed, describe(changed), ui=shown(changed))


class DatasetMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftDatasetMasks",
            display_name="Masks For Training",
            category="graft/data",
            description=(
                "Says what of each picture counts. Masks follow their pictures through crops, scaling and mirroring."
            ),
            search_aliases=["masked loss", "mask dataset", "masked training"],
            is_input_list=True,
            inputs=[
                socket(GraftDataset, "dataset", _DATASET),
                socket(
                    io.Mask,
                    "masks",
                    "What counts is white: a batch or a list, one mask for all pictures or one for each, of the "
                    "picture's size. Without it the dataset keeps the masks that it has.",
                    optional=True,
                ),
                switch("invert", "What counts is black in the masks of the socket.", False),
                field(Framing, "outside", step=0.05),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "The same pictures with masks."),
                output(io.String, "report", "What the dataset holds, its masks among it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: list[Any],
        invert: list[bool],
        outside: list[float],
        masks: list[Any] | None = None,
    ) -> io.NodeOutput:
        changed = with_masks(dataset[0], masks, invert[0]) if masks else dataset[0]
        changed = changed.map(
            lambda part: replace(part, framing=replace(part.framing, outside=outside[0]))
        )
        return io.NodeOutput(changed, describe(changed), ui=shown(changed))


NODES = [Captions, Buckets, DatasetMasks]
