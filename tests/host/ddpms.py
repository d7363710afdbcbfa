# SPDX-License-Identifier: Apache-2.0
"""Tiny pixel diffusion models, and the same network as diffusers makes it."""

import torch


def facts(**changes):
    """What a tiny model is: 8 px, gray, five classes and one for none."""
    from graft.host.model.ddpm_settings import settings

    given = {
        "size": 8,
        "channels": 1,
        "width": 8,
        "levels": "1,2",
        "layers": 1,
        "classes": 5,
        "unlabelled": True,
        "schedule": "linear",
        "predicts": "epsilon",
    }
    return settings(**(given | changes))


def model(seed=0, clip=True, inference=True, **changes):
    """A MODEL of random weights that depends on class, time and picture visibly."""
    from dataclasses import replace

    from graft.host.files import ddpm
    from tests.host.tiny import randomize

    made = facts(**changes)
    made = replace(made, scheduler={**made.scheduler, "clip_sample": clip})
    with torch.inference_mode(inference):
        patcher = ddpm.make(made, seed)
        randomize(patcher.model.diffusion_model, seed)
    return patcher


def twin(patcher):
    """diffusers' own UNet2DModel with the weights of a MODEL."""
    from diffusers import UNet2DModel

    with torch.inference_mode(False):
        made = UNet2DModel(**patcher.model.ddpm.unet)
        state = patcher.model.diffusion_model.state_dict()
        made.load_state_dict({name: value.clone() for name, value in state.items()})
    return made.eval()


def dataset(labels=(0, 1, 2, 3), dropout=0.0, channels=1):
    from graft.trainers.data import Captioning, Dataset, Item

    generator = torch.Generator().manual_seed(0)
    shape = (8, 8, channels)
    pictures = [torch.rand(shape, generator=generator).expand(8, 8, 3) for _ in labels]
    items = [Item("a text", pixels=p, label=n) for p, n in zip(pictures, labels, strict=True)]
    return Dataset(tuple(items), resolution=8, captioning=Captioning(dropout=dropout))
