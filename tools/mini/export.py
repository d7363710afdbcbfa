# SPDX-License-Identifier: Apache-2.0
"""Write the averaged weights as one checkpoint in SDXL's layout, in half precision."""

from __future__ import annotations

from pathlib import Path

import torch

from . import legs, pretrain_autoencoder, text
from .pretrain_unet import Trainee

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def _text_state(model: Trainee) -> dict[str, torch.Tensor]:
    state = dict(model.text.clip.state_dict())
    for side, table in (("clip_l", model.text.table_l), ("clip_g", model.text.table_g)):
        state[f"{side}.transformer.text_model.embeddings.token_embedding.weight"] = table.whole(
            table.weight.detach()
        )
    return state


@torch.no_grad()
def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """The whole model by SDXL checkpoint names, from whatever stages have run.

    Args:
        folder: Where the stages keep their checkpoints.

    Returns:
        Tensors in half precision.
    """
    from ...host.model.mini import UNET_PREFIX, VAE_PREFIX, mini_config

    model = Trainee(text.WordTokens(), torch.device("cpu"), 0)
    if (state := legs.load_checkpoint(folder / "unet.pt")) is not None:
        model.load_state_dict(state["model"])
        model.load_state_dict(state["average"], strict=False)
        legs.log.info("export: step %d", state["step"])
    found = {UNET_PREFIX + name: value for name, value in model.unet.state_dict().items()}
    found.update(mini_config().process_clip_state_dict_for_saving(_text_state(model)))
    for name, value in pretrain_autoencoder.finish(folder).state_dict().items():
        found[VAE_PREFIX + name] = value
    halves = {}
    for name, value in found.items():
        keep = not value.is_floating_point()
        halves[name] = (value if keep else value.half()).contiguous().clone()
    return halves


def main(folder: Path, path: Path | None = None) -> Path:
    """Export to the asset file, moved into place in one go.

    Args:
        folder: Where the stages keep their checkpoints.
        path: Another file than the shipped one.

    Returns:
        The file written.
    """
    from safetensors.torch import save_file

    path = path or ASSETS / "graft-mini.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    metadata = {
        "modelspec.title": "graft-mini",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/miniature",
    }
    metadata |= {"modelspec.license": "Apache-2.0", "modelspec.prediction_type": "epsilon"}
    save_file(checkpoint(folder), str(partial), metadata=metadata)
    partial.chmod(0o644)
    partial.replace(path)
    legs.log.info("wrote %s, %.1f MB", path.name, path.stat().st_size / 1e6)
    return path
