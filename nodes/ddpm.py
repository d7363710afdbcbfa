# SPDX-License-Identifier: Apache-2.0
"""Diffusion models that draw pixels, by class or freely: loaded, made anew, conditioned and saved."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import ddpm as files
from ..host.files import paths
from ..host.model import ddpm, ddpm_settings
from ..host.model.ddpm_vae import pixel_vae
from ..host.text import labels as host_labels
from .schema import choice, one_of, output, schema, seed, socket, switch, text, whole

_COLORS = {"color": 3, "gray": 1}
_MODEL = "The model, for KSampler, Train, Class Labels and any other node that takes a MODEL."
_VAE = "Turns its latents, which are pictures in -1..1, into IMAGE and back. It loses nothing."


def _made(node: Any, model: Any) -> io.NodeOutput:
    said = ddpm_settings.described(model)
    graph.show_text(node.hidden.unique_id, said)
    return io.NodeOutput(model, pixel_vae(ddpm.needed(model).channels), ui={"text": [said]})


class LoadDdpm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftLoadDdpm",
            display_name="Load Pixel Diffusion",
            category="graft/loaders",
            description=(
                "Loads a diffusers DDPM pipeline (a folder with model_index.json, unet and scheduler) as a MODEL that "
                "draws pixels, without text. Any sampler draws with it, and Train trains it."
            ),
            search_aliases=[
                "ddpm",
                "unconditional",
                "UNet2DModel",
                "diffusers",
                "class conditional",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                text(
                    "folder",
                    "Name of the folder in models/diffusers or output/diffusers. A wrong name is answered with those "
                    "that are there.",
                ),
            ],
            outputs=[output(io.Model, "MODEL", _MODEL), output(io.Vae, "VAE", _VAE)],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        try:
            if folder is not None:  # else it comes over a link and is not known yet
                files.find(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None) -> str:
        return files.fingerprint(folder) if folder else ""

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        return _made(cls, files.load(folder))


class NewDdpm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftNewDdpm",
            display_name="New Pixel Diffusion",
            category="graft/loaders",
            description=(
                "Makes a new MODEL that draws small pictures, of classes or freely, to be trained from nothing: with "
                "Train, the network full and the dataset's folders as classes."
            ),
            search_aliases=[
                "train from scratch",
                "ddpm",
                "new model",
                "UNet2DModel",
                "unconditional",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                whole("size", "Side of its pictures in pixels.", 64, min=8, max=1024, step=8),
                choice(
                    "colors",
                    "What its pictures are: of three channels, or of one.",
                    _COLORS,
                    "color",
                ),
                whole(
                    "classes",
                    "How many classes it tells apart, whose numbers are those of the dataset; 0 draws freely.",
                    0,
                    min=0,
                    max=10_000,
                ),
                whole("width", "Channels of its first level.", 64, min=8, max=1024, step=8),
                text(
                    "levels",
                    "Channels of each level as multiples of width. Each level but the last halves the picture, and the "
                    "last two have attention.",
                    "1,2,2,4",
                ),
                whole("layers", "Residual blocks of a level.", 2, min=1, max=16),
                choice(
                    "schedule",
                    "How noise grows. squaredcos_cap_v2 suits small pictures.",
                    ddpm_settings.SCHEDULES,
                    "linear",
                ),
                choice(
                    "predicts",
                    "What the network predicts. epsilon: the noise. v_prediction: the velocity. sample: the picture.",
                    ddpm.PREDICTIONS,
                    "epsilon",
                ),
                switch(
                    "unlabelled",
                    "Also have a class for no class, for guidance (cfg above 1): train with dropout in Captions, 0.1 "
                    "say.",
                    True,
                ),
                seed("Seed of the weights. The same seed makes the same model."),
            ],
            outputs=[output(io.Model, "MODEL", _MODEL), output(io.Vae, "VAE", _VAE)],
        )

    @classmethod
    def execute(
        cls,
        size: int,
        colors: str,
        classes: int,
        width: int,
        levels: str,
        layers: int,
        schedule: str,
        predicts: str,
        unlabelled: bool,
        seed: int,
    ) -> io.NodeOutput:
        one_of("colors", colors, _COLORS)
        one_of("schedule", schedule, dict.fromkeys(ddpm_settings.SCHEDULES))
        facts = ddpm_settings.settings(
            size=size,
            channels=_COLORS[colors],
            width=width,
            levels=levels,
            layers=layers,
            classes=classes,
            unlabelled=unlabelled,
            schedule=schedule,
            predicts=predicts,
        )
        return _made(cls, files.make(facts, seed))


class ClassLabel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftClassLabel",
            display_name="Class Labels",
            category="graft/conditioning",
            description=(
                "What KSampler needs to draw pictures of classes with a pixel diffusion model: conditioning and an "
                "empty latent, with one picture for each label."
            ),
            search_aliases=["class label", "class conditional", "empty latent", "ddpm", "label"],
            inputs=[
                socket(
                    io.Model,
                    "model",
                    "A model from Load or New Pixel Diffusion, or trained from it.",
                ),
                text(
                    "labels",
                    "Numbers of the classes to draw, with commas or spaces between: 0, 1, 2. Empty: no class.",
                    "0",
                ),
                whole("count", "Pictures of each.", 1, min=1, max=4096),
                whole("width", "In pixels; 0 is the model's own.", 0, min=0, max=8192, step=8),
                whole("height", "In pixels; 0 is the model's own.", 0, min=0, max=8192, step=8),
            ],
            outputs=[
                output(
                    io.Conditioning,
                    "positive",
                    "The labels, for the pictures of the batch in turn.",
                ),
                output(
                    io.Conditioning,
                    "negative",
                    "No class, to guide away from; the positive one where the model has no class for that.",
                ),
                output(io.Latent, "LATENT", "Empty, one picture for each label."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, labels: str, count: int, width: int, height: int) -> io.NodeOutput:
        made = host_labels.conditionings(model, labels, count, (width, height))
        return io.NodeOutput(made[0], made[1], {"samples": made[2]})


class SaveDdpm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSaveDdpm",
            display_name="Save Pixel Diffusion",
            category="graft/training",
            description=(
                "Saves a pixel diffusion model, with what was trained of it, as a diffusers folder in "
                "output/diffusers: Load Pixel Diffusion and diffusers' DDPMPipeline.from_pretrained load it."
            ),
            search_aliases=["save ddpm", "export diffusers", "save_pretrained", "pipeline"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(
                    io.Model, "model", "MODEL of a training node, or any pixel diffusion model."
                ),
                text(
                    "name",
                    "Name of the folder. Where another model has it, a number is added.",
                    "pixel-diffusion",
                ),
            ],
            outputs=[output(io.String, "folder", "The name for Load Pixel Diffusion.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            if name is not None:
                paths.safe_name(name, "name of the folder")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, name: str) -> io.NodeOutput:
        folder, path = files.save(model, name)
        report = (
            f"Saved as output/{paths.relative_to_output(path)}: {ddpm_settings.described(model)}"
        )
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(folder, ui={"text": [report]})


NODES = [LoadDdpm, NewDdpm, ClassLabel, SaveDdpm]
