# SPDX-License-Identifier: Apache-2.0
"""Datasets for training: from a folder, or from pictures in the graph."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.data.folder_dataset import FolderOptions, load
from ..host.data.shown import shown
from ..trainers.data import (
    Dataset,
    Item,
    describe,
    folder_fingerprint,
    rgb_pixels,
    with_masks,
)
from ..trainers.data.caption_files import lines_of
from ..trainers.data.folder import MASKS, NO_MASKS
from ..trainers.data.layouts import LAYOUTS, PLAIN
from .schema import GraftDataset, choice, field, output, schema, socket, switch, text, whole

_TRIGGER = "The word or words that name the concept, as the captions have them; saved in the LoRA's metadata."
_RESOLUTION = (
    "Side of the square whose area a training picture may have: 1024 for SDXL, SD3 and Flux, 512 for SD 1.5, 64 for "
    "graft-mini. Pictures keep their shape, and are never scaled up."
)
_REPORT = "What was found: sizes, captions, duplicates, warnings."


class LoadImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftLoadImages",
            display_name="Load Images For Training",
            category="graft/data",
            description=(
                "Reads a folder of pictures and their captions. A caption is a .txt file beside its picture and of the "
                "same name, or one caption for all. Put the folder into ComfyUI's input folder."
            ),
            search_aliases=["dataset", "image folder", "training images", "load dataset"],
            inputs=[
                choice(
                    "folder",
                    "A folder under input (or a datasets folder) that holds pictures. Press R for new folders.",
                    graph.picture_folders(),
                ),
                text(
                    "caption",
                    "Caption of every picture that has no .txt file. Name the concept and what else is to be seen.",
                    multiline=True,
                ),
                text("trigger", _TRIGGER),
                switch("recursive", "Also read the folders inside this folder.", False),
                whole("resolution", _RESOLUTION, 1024, min=8, max=8192, step=8),
                field(Dataset, "crops"),
                choice(
                    "layout",
                    "What is in the folder. plain: pictures. repeats: folders such as 10_sks dog, as sd-scripts has "
                    "them. classes: a folder for each class. metadata: captions in metadata.jsonl or metadata.csv.",
                    LAYOUTS,
                    PLAIN,
                    optional=True,
                ),
                choice(
                    "masks",
                    "What of a picture counts. none: all of it. files: what is white in cat-masklabel.png beside "
                    "cat.png. alpha: what is not transparent.",
                    MASKS,
                    NO_MASKS,
                    optional=True,
                ),
                switch(
                    "caption_lines",
                    "Each line of a caption file is a caption of its own; steps draw among them.",
                    False,
                    optional=True,
                ),
                switch(
                    "allow_no_caption",
                    "Also take pictures that have no caption: class images, which get class_prompt of Class Images, "
                    "or pictures to train with the empty text.",
                    False,
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "Pictures with captions, for a training node."),
                output(io.String, "report", _REPORT),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        if folder is None:  # it comes over a link and is not known yet
            return True
        try:
            graph.picture_folder(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: str | None,
        caption: str,
        trigger: str,
        recursive: bool | None,
        resolution: int,
        crops: int,
        layout: str | None = PLAIN,
        masks: str | None = NO_MASKS,
        caption_lines: bool | None = False,
        allow_no_caption: bool | None = False,
    ) -> str:
        if folder is None:  # it comes over a link, and changes with what is behind that
            return ""
        deep = recursive is not False or layout != PLAIN
        return folder_fingerprint(graph.picture_folder(folder), deep)

    @classmethod
    def execute(
        cls,
        folder: str,
        caption: str,
        trigger: str,
        recursive: bool,
        resolution: int,
        crops: int,
        layout: str = PLAIN,
        masks: str = NO_MASKS,
        caption_lines: bool = False,
        allow_no_caption: bool = False,
    ) -> io.NodeOutput:
        options = FolderOptions(
            folder=folder,
            caption=caption,
            trigger=trigger,
            recursive=recursive,
            resolution=resolution,
            crops=crops,
            layout=layout,
            masks=masks,
            caption_lines=caption_lines,
            allow_no_caption=allow_no_caption,
        )
        dataset = load(options)
        return io.NodeOutput(dataset, describe(dataset), ui=shown(dataset))


class ImagesToDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftImagesToDataset",
            display_name="Images To Dataset",
            category="graft/data",
            description=(
                "Makes a dataset of pictures that are in the graph, a batch or a list, and captions: one for all, one "
                "a line, or a list."
            ),
            search_aliases=["dataset", "image batch to dataset", "captions"],
            is_input_list=True,
            inputs=[
                socket(
                    io.Image, "images", "The pictures: a batch, or a list of pictures of any size."
                ),
                text(
                    "captions",
                    "One line for all pictures, or one line for each, in their order; or a list of texts on the "
                    "input's socket.",
                    multiline=True,
                ),
                text("trigger", _TRIGGER),
                whole("resolution", _RESOLUTION, 1024, min=8, max=8192, step=8),
                field(Dataset, "crops"),
                socket(
                    io.Mask,
                    "masks",
                    "What of the pictures counts, which is white: a batch or a list, one mask for all or one for "
                    "each, of the picture's size.",
                    optional=True,
                ),
            ],
            outputs=[
                output(GraftDataset, "DATASET", "Pictures with captions, for a training node."),
                output(io.String, "report", _REPORT),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Any],
        captions: list[str],
        trigger: list[str],
        resolution: list[int],
        crops: list[int],
        masks: list[Any] | None = None,
    ) -> io.NodeOutput:
        pictures = [picture for batch in images for picture in rgb_pixels(batch)]
        texts = captions_for(len(pictures), captions)
        items = tuple(
            Item((one,), pixels=picture) for one, picture in zip(texts, pictures, strict=True)
        )
        dataset = Dataset(items, trigger[0].strip(), resolution[0], "the graph", crops=crops[0])
        if masks:
            dataset = with_masks(dataset, masks)
        return io.NodeOutput(dataset, describe(dataset), ui=shown(dataset))


def captions_for(count: int, captions: list[str]) -> list[str]:
    """A caption for each of ``count`` pictures, from one text, its lines, or a list of texts.

    Raises:
        ValueError: There are no captions, or neither one nor as many as pictures.
    """
    lines = captions if len(captions) != 1 else lines_of(captions[0].strip())
    texts = [line.strip() for line in lines]
    if not any(texts):
        raise ValueError(
            "The pictures have no caption. Give one line for all of them, or one line for each picture."
        )
    if len(texts) == 1:
        return texts * count
    if len(texts) != count:
        raise ValueError(
            f"There are {count} pictures and {len(texts)} captions. Give one caption for all, or one for each."
        )
    if not all(texts):
        empty = [str(number) for number, one in enumerate(texts, 1) if not one]
        raise ValueError(f"These pictures have an empty caption: {', '.join(empty)}.")
    return texts


NODES = [LoadImages, ImagesToDataset]
