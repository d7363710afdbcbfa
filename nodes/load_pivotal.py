# SPDX-License-Identifier: Apache-2.0
"""A LoRA and its new words, onto a MODEL and a CLIP."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import embedding_files, lora_files, paths, pivotal
from ..host.files.strengths import MOST, Strengths
from .schema import choice, number, output, schema, socket, text

NONE = "none"


class LoadPivotal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        limits = {"min": -MOST, "max": MOST, "step": 0.05}
        return schema(
            node_id="GraftLoadPivotal",
            display_name="Load Pivotal (LoRA + Words)",
            category="graft/loaders",
            description=(
                "Loads a LoRA together with the new words that it was trained with, from one file or two, or new words "
                "alone. The CLIP that comes out knows them: write the word into any prompt, (TOK:1.2) too, without "
                "embedding: before it. No other CLIP is changed."
            ),
            search_aliases=[
                "pivotal tuning",
                "textual inversion",
                "embedding",
                "token",
                "load lora",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(io.Clip, "clip", "The CLIP that is to know the words."),
                choice(
                    "lora",
                    "A LoRA of any dialect. The words that it bundles are loaded with it. Press R for new files.",
                    [NONE, *lora_files.names()],
                    NONE,
                ),
                choice(
                    "embeddings",
                    "New words in a file of their own: .safetensors of this pack, ComfyUI, kohya or diffusers, or an "
                    "old .pt or .bin, of which nothing but vectors is read. none: those in the LoRA.",
                    [NONE, *embedding_files.names()],
                    NONE,
                ),
                number("strength_model", "How strongly the LoRA changes the model.", 1.0, **limits),
                number(
                    "strength_clip", "How strongly it changes the text encoders.", 1.0, **limits
                ),
                text(
                    "word",
                    "What to write in prompts instead of the files' own words; with commas between them where there "
                    "are several. Needed where two files are called by the same word.",
                ),
                socket(
                    io.Model,
                    "model",
                    "The model that the LoRA was trained on, or one of its kind. Words alone need none.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.Model, "MODEL", "The model with the LoRA."),
                output(io.Clip, "CLIP", "The CLIP that knows the words."),
                output(io.String, "trigger", "The words, to put into a prompt."),
                output(io.String, "report", "How much takes effect, and what does not and why."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None, embeddings: str | None = None) -> bool | str:
        try:
            if lora not in (None, NONE):  # None comes over a link and is not known yet
                lora_files.path(str(lora))
            if embeddings not in (None, NONE):
                embedding_files.path(str(embeddings))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        lora: str | None = None,
        embeddings: str | None = None,
        clip: Any = None,
        strength_model: float | None = None,
        strength_clip: float | None = None,
        word: str | None = None,
        model: Any = None,
    ) -> str:
        files = [] if lora in (None, NONE) else [lora_files.path(str(lora))]
        files += [] if embeddings in (None, NONE) else [embedding_files.path(str(embeddings))]
        return " ".join(paths.fingerprint(file) for file in files)

    @classmethod
    def execute(
        cls,
        clip: Any,
        lora: str,
        embeddings: str,
        strength_model: float,
        strength_clip: float,
        word: str,
        model: Any = None,
    ) -> io.NodeOutput:
        loaded = pivotal.load(
            model,
            clip,
            None if lora == NONE else lora_files.load_any(lora),
            None if embeddings == NONE else embedding_files.path(embeddings),
            word,
            Strengths(strength_model, strength_clip),
        )
        graph.show_text(cls.hidden.unique_id, loaded.report)
        return io.NodeOutput(loaded.model, loaded.clip, loaded.trigger, loaded.report)


NODES = [LoadPivotal]
