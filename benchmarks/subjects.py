# SPDX-License-Identifier: Apache-2.0
"""What is trained in the benchmarks: models in real layouts and random data that fit them.

A step's time does not depend on the values of the weights, so they are random, and no file is needed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def start() -> None:
    """Make ComfyUI, the pack (as `graft`) and `tests` importable, on the CPU or as GRAFT_TEST_DEVICE says."""
    if "tests" not in sys.modules and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.host import inprocess

    inprocess.start()


@dataclass(frozen=True)
class Subject:
    """A model and the shape of a batch.

    Attributes:
        name: how it is called on the command line and in results.
        latent: height and width of the latents.
        batch: pictures a step.
        about: what it is, for the table.
    """

    name: str
    latent: tuple[int, int]
    batch: int
    about: str

    def config(self) -> Any:
        """The host's model configuration."""
        from comfy import supported_models

        from graft.host.model import mini

        if self.name == "mini":
            return mini.mini_config()
        if self.name == "tiny":
            from tests.host import tiny

            return tiny._model_config("sdxl")
        shared = {
            k: v for k, v in mini.UNET_CONFIG.items() if k not in ("context_dim", "adm_in_channels")
        }
        depths = {
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
        }
        # 64 / 320 of the real width; so is the text's, or its share of the work would be five times the real one.
        widths = {"model_channels": 64, "context_dim": 384, "adm_in_channels": 2816}
        return supported_models.SDXL(shared | depths | widths)

    def model(self) -> Any:
        """A MODEL with random weights, as a loader node leaves it on the wire."""
        with torch.inference_mode():
            return self._load()

    def _load(self, disable_dynamic: bool = False) -> Any:
        """Build the MODEL; newer hosts call this again where they want a copy of their own."""
        import comfy.model_management as mm
        import comfy.model_patcher as patchers

        from tests.host import tiny

        device, offload = mm.get_torch_device(), mm.unet_offload_device()
        config = self.config()
        config.set_inference_dtype(torch.float32, mm.unet_manual_cast(torch.float32, device))
        base = config.get_model({}, "", device=offload)
        tiny.randomize(base.diffusion_model, 0)
        base.diffusion_model.requires_grad_(False)
        base.eval()
        kind = patchers.ModelPatcher
        if not disable_dynamic:
            kind = getattr(patchers, "CoreModelPatcher", kind)
        patcher = kind(base, load_device=device, offload_device=offload)
        patcher.cached_patcher_init = (self._load, ())
        return patcher

    def pictures(self, count: int = 4) -> "Pictures":
        """Random latents and conditionings of this model's widths."""
        config = self.config().unet_config
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn((count, 4, *self.latent), generator=generator)
        text = torch.randn((count, 77, config["context_dim"]), generator=generator)
        pooled = torch.randn((count, config["adm_in_channels"] - 1536), generator=generator)
        return Pictures(latents, text, pooled)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Encoded pictures: latents ``[N, 4, h, w]``, text ``[N, 77, C]``, pooled text ``[N, P]``."""

    latents: torch.Tensor
    text: torch.Tensor
    pooled: torch.Tensor


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("mini", (8, 8), 4, "graft-mini's layout, 8x8 latents, batch 4"),
        Subject(
            "sdxl64",
            (32, 32),
            2,
            "SDXL's layout at 64 channels, depth [0,0,2,2,10,10], 32x32 latents, batch 2",
        ),
        Subject("tiny", (8, 8), 2, "a toy for warming up and for the tests, 8x8 latents, batch 2"),
    )
}
