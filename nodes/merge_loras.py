# SPDX-License-Identifier: Apache-2.0
"""Several LoRAs as one."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.files import lora_files, result
from ..host.files.strengths import MOST, Strengths
from ..host.merging import loras
from ..loaders.merging import MODES
from ..loaders.merging.base import SIGNS
from .engine import check_name
from .schema import GraftAdapter, choice, number, output, schema, seed, socket, text, whole

NO_FILE = "none"
_COUNT = 4
_FIRST = "sum"


def _inputs(number_of: int, **more: Any) -> list[Any]:
    limits = {"min": -MOST, "max": MOST, "step": 0.05} | more
    return [
        choice(
            f"file_{number_of}",
            f"A file of ComfyUI's loras folders, or an example, of any kind of adapter. Not read where something is "
            f"connected to adapter_{number_of}. Press R for new files.",
            [NO_FILE, *lora_files.names()],
            **more,
        ),
        number(f"weight_{number_of}", "How much it counts; below 0 takes it away.", 1.0, **limits),
        text(
            f"weights_{number_of}",
            "What some blocks of it count, as pattern=weight with semicolons between them: output_blocks.0.1=1; "
            "output_blocks.1.1=0.5. Each multiplies the weight there; the last one that a layer matches counts.",
            advanced=True,
            **more,
        ),
    ]


class MergeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftMergeLoras",
            display_name="Merge LoRAs",
            category="graft/loaders",
            description=(
                "Makes one LoRA of two to four: their weighted sum, exactly or at a chosen rank, or one of PEFT's ways "
                "(TIES, DARE and others). LoHa, LoKr, OFT, DoRA and full weights are taken, too, with the model "
                "connected."
            ),
            search_aliases=["merge lora", "combine lora", "ties", "dare", "svd", "resize lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                *_inputs(1),
                *_inputs(2),
                choice(
                    "mode",
                    "sum: what the weights would be with all of them loaded, also of different kinds and ranks. cat "
                    "and svd are PEFT's forms of it for LoRAs; linear sums the factors, which is another thing. "
                    "ties, dare and magnitude-prune leave values out so that the LoRAs disturb each other less; with "
                    "svd they do it on the changes themselves.",
                    MODES.names(),
                    _FIRST,
                ),
                whole(
                    "rank",
                    "Rank of the result, for sum and the modes with svd. 0: all that it takes (sum), or the largest "
                    "of the given ones (svd).",
                    0,
                    min=0,
                    max=4096,
                ),
                number(
                    "energy",
                    "Share of the change that each layer keeps, as squared singular values: 0.99 gives small files. "
                    "The rank is as small as this allows. 1: only the rank decides.",
                    1.0,
                    min=0.01,
                    max=1.0,
                ),
                number(
                    "density",
                    "Share of the values that is kept, for ties, dare and magnitude-prune.",
                    0.5,
                    min=0.001,
                    max=1.0,
                    step=0.05,
                ),
                choice(
                    "signs",
                    "How ties elects a sign. total: by the sum of the values. frequency: by their number.",
                    SIGNS,
                    advanced=True,
                ),
                seed("Seed of what dare drops."),
                text("name", "What the merged ADAPTER is called.", "merged"),
                *_inputs(3, optional=True),
                *_inputs(4, optional=True),
                *(
                    socket(
                        GraftAdapter,
                        f"adapter_{n}",
                        f"The ADAPTER of a training node, in the place of file_{n}.",
                        optional=True,
                    )
                    for n in range(1, _COUNT + 1)
                ),
                socket(
                    io.Model,
                    "model",
                    "The model that they are for: for files that name layers differently, weights by block, and other "
                    "kinds than LoRA. The result is checked on it.",
                    optional=True,
                ),
                socket(
                    io.Clip,
                    "clip",
                    "Its CLIP, for text encoders that files name differently.",
                    optional=True,
                ),
            ],
            outputs=[
                output(GraftAdapter, "ADAPTER", "The merged one, for Save LoRA and Load Adapter."),
                output(io.LoraModel, "LORA_MODEL", "The same for ComfyUI's own nodes."),
                output(io.String, "report", "What was merged, and how much the rank kept."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        name: str | None = None,
        file_1: str | None = None,
        file_2: str | None = None,
        file_3: str | None = None,
        file_4: str | None = None,
        weights_1: str | None = None,
        weights_2: str | None = None,
        weights_3: str | None = None,
        weights_4: str | None = None,
    ) -> bool | str:
        try:
            for file in (file_1, file_2, file_3, file_4):
                if file not in (None, NO_FILE):
                    lora_files.path(file)
            for blocks in (weights_1, weights_2, weights_3, weights_4):
                Strengths(blocks=blocks or "")
        except ValueError as error:
            return str(error)
        return check_name(name)

    @classmethod
    def fingerprint_inputs(
        cls,
        file_1: str | None = None,
        file_2: str | None = None,
        file_3: str | None = None,
        file_4: str | None = None,
        weight_1: float | None = None,
        weight_2: float | None = None,
        weight_3: float | None = None,
        weight_4: float | None = None,
        weights_1: str | None = None,
        weights_2: str | None = None,
        weights_3: str | None = None,
        weights_4: str | None = None,
        mode: str | None = None,
        rank: int | None = None,
        energy: float | None = None,
        density: float | None = None,
        signs: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        adapter_1: Any = None,
        adapter_2: Any = None,
        adapter_3: Any = None,
        adapter_4: Any = None,
        model: Any = None,
        clip: Any = None,
    ) -> str:
        files = [f for f in (file_1, file_2, file_3, file_4) if f not in (None, NO_FILE)]
        return "\n".join(lora_files.fingerprint(str(file)) for file in files)

    @classmethod
    def execute(
        cls,
        file_1: str,
        weight_1: float,
        weights_1: str,
        file_2: str,
        weight_2: float,
        weights_2: str,
        mode: str,
        rank: int,
        energy: float,
        density: float,
        signs: str,
        seed: int,
        name: str,
        file_3: str = NO_FILE,
        weight_3: float = 1.0,
        weights_3: str = "",
        file_4: str = NO_FILE,
        weight_4: float = 1.0,
        weights_4: str = "",
        adapter_1: Any = None,
        adapter_2: Any = None,
        adapter_3: Any = None,
        adapter_4: Any = None,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        rows = (
            (adapter_1, file_1, weight_1, weights_1),
            (adapter_2, file_2, weight_2, weights_2),
            (adapter_3, file_3, weight_3, weights_3),
            (adapter_4, file_4, weight_4, weights_4),
        )
        given = [
            loras.Given(
                lora_files.load_any(file) if adapter is None else adapter,
                Strengths(weight, weight, blocks),
            )
            for adapter, file, weight, blocks in rows
            if adapter is not None or file != NO_FILE
        ]
        how = MODES.parse(mode, rank=rank, energy=energy, density=density, signs=signs)
        node = cls.hidden.unique_id
        made = loras.merge(given, how, model, clip, seed, name.strip() or "merged", node)
        graph.show_text(node, made.report)
        lora = result.lora_state_dict(made.adapter)
        return io.NodeOutput(made.adapter, lora, made.report, ui={"text": [made.report]})


NODES = [MergeLoras]
