# SPDX-License-Identifier: Apache-2.0
"""New words: what is to be learned of them, and their files."""

from typing import Any

from comfy_api.latest import io

from ..adapters.tokens import Concept, Tokens
from ..host import graph
from ..host.files import paths
from ..host.text import embeddings
from .schema import GraftAdapter, GraftTokens, field, output, schema, socket, text


class ConceptToken(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftTokens",
            display_name="Concept Token",
            category="graft/training/parts",
            description=(
                "A new word that the text encoders learn (textual inversion); with a LoRA beside it this is pivotal "
                "tuning. Captions have to name it. Chain several for several concepts."
            ),
            search_aliases=["textual inversion", "embedding", "pivotal tuning", "TOK", "new token"],
            inputs=[
                field(Concept, "name"),
                field(Concept, "vectors"),
                field(Concept, "init"),
                field(Tokens, "retraction", advanced=True),
                socket(
                    GraftTokens,
                    "tokens",
                    "More concepts, from another node of this kind; the last node's retraction holds for all.",
                    optional=True,
                ),
            ],
            outputs=[output(GraftTokens, "TOKENS", "For the tokens socket of Train.")],
        )

    @classmethod
    def execute(
        cls, name: str, vectors: int, init: str, retraction: float, tokens: Any = None
    ) -> io.NodeOutput:
        concept = Concept(name.strip(), vectors, init.strip())
        return io.NodeOutput(Tokens((*(tokens.concepts if tokens else ()), concept), retraction))


class SaveEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSaveEmbeddings",
            display_name="Save Embeddings",
            category="graft/training",
            description=(
                "Saves the new words of a training, one file each, into output/embeddings, where embedding:name in a "
                "prompt finds them; the files work in other programs, too."
            ),
            search_aliases=["save textual inversion", "export embedding"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                socket(GraftAdapter, "adapter", "The ADAPTER of a training node with tokens."),
                text(
                    "filename",
                    "Name of the files, without folders; empty takes each word's own. With several words, theirs are "
                    "added. A file that is there is not replaced: a number is added.",
                ),
            ],
            outputs=[output(io.String, "prompt", "How a prompt names them: embedding:TOK.")],
        )

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        try:
            if filename:
                paths.safe_name(filename.strip(), "filename")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, adapter: Any, filename: str) -> io.NodeOutput:
        saved = embeddings.save(adapter, filename.strip())
        prompt = " ".join(f"embedding:{path.stem}" for path in saved)
        listed = ", ".join(path.name for path in saved)
        report = f"Saved as {listed} in output/embeddings. In a prompt: {prompt}"
        graph.show_text(cls.hidden.unique_id, report)
        return io.NodeOutput(prompt, ui={"text": [report]})


NODES = [ConceptToken, SaveEmbeddings]
