# SPDX-License-Identifier: Apache-2.0
"""EDM preconditioning as a patch of a MODEL (Karras et al. 2022, Table 1; arXiv 2206.00364), on the host's own classes.

``edm``: D = c_skip x + c_out F(c_in x; ln(sigma) / 4), for networks that were trained so, as Playground v2.5.
``edm v``: the same with F's sign turned, as diffusers' EDM schedulers have it for v_prediction.
``own times``: the MODEL's own eps or v with times between those of its table, where the host takes the nearest.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from ...registry import check_limits, option
from ...trainers.facts import facts
from ..model.sampling import PATCH, HostSampling

EDM, EDM_V, OWN_TIMES = "edm", "edm v", "own times"
KINDS = (EDM, EDM_V, OWN_TIMES)
PLAYGROUND, OWN = "Playground v2.5", "the model's own"
LATENTS = (PLAYGROUND, OWN)


@dataclass(frozen=True)
class EDMModel:
    """How a MODEL is preconditioned. The defaults are those of Playground v2.5."""

    preconditioning: str = option(
        EDM,
        "edm: for networks that were trained with it, as Playground v2.5. edm v: those of v-prediction. own times: an "
        "eps or v model as it is, with times between those of its table.",
        choices=KINDS,
    )
    sigma_data: float = option(
        0.5, "Spread of the latents that it was trained with.", min=0.001, max=1000.0, step=0.001
    )
    sigma_min: float = option(0.002, "Its lowest noise level.", min=0.00001, max=1e6, step=0.001)
    sigma_max: float = option(
        80.0, "Its highest noise level; 80 for Playground v2.5.", min=0.00001, max=1e6, step=0.01
    )
    latents: str = option(
        PLAYGROUND,
        "Mean and spread of the latents. Playground v2.5: its own, for each channel. the model's own: as they are.",
        choices=LATENTS,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}: sigma_min must be below it."
            )


def patched(model: Any, settings: EDMModel) -> Any:
    """A clone of a MODEL with another preconditioning.

    Args:
        model: The MODEL; it is not loaded, and not changed.
        settings: The preconditioning.

    Returns:
        A MODEL.

    Raises:
        ValueError: The model cannot have it; says why and what to do.
    """
    made = model.clone()
    with torch.inference_mode(False), torch.no_grad():
        if settings.preconditioning == OWN_TIMES:
            made.add_object_patch(PATCH, _between(model))
        else:
            made.add_object_patch(PATCH, _edm(model, settings))
    if settings.preconditioning != OWN_TIMES and settings.latents == PLAYGROUND:
        made.add_object_patch("latent_format", _playground(model))
    return made


def _edm(model: Any, settings: EDMModel) -> Any:
    import comfy.model_sampling as host

    if facts(HostSampling(model.get_model_object(PATCH))).family == "flow":
        raise ValueError(
            "This is a flow model: its network was trained to give the flow between picture and noise, which EDM "
            "preconditioning does not read. Leave the MODEL as it is."
        )
    prediction = host.EDM if settings.preconditioning == EDM else host.V_PREDICTION
    kind = type("EDMSampling", (host.ModelSamplingContinuousEDM, prediction), {})
    made = kind(model.model.model_config)
    made.set_parameters(settings.sigma_min, settings.sigma_max, settings.sigma_data)
    return made


def _playground(model: Any) -> Any:
    import comfy.latent_formats

    channels = model.get_model_object("latent_format").latent_channels
    if channels != 4:
        raise ValueError(
            f"The latents of this MODEL have {channels} channels, and Playground v2.5's have 4. Set latents to "
            f"'{OWN}'."
        )
    return comfy.latent_formats.SDXL_Playground_2_5()


def _between(model: Any) -> Any:
    """The model's own sampling, with the time of a level taken between those of its table, by ln sigma."""
    sampling = model.get_model_object(PATCH)
    known = facts(HostSampling(sampling))
    if not known.is_discrete:
        raise ValueError(
            f"own times are for models with a table of time steps, and this is a model of continuous levels ({known}). "
            "Leave it as it is."
        )

    def timestep(self: Any, sigma: torch.Tensor) -> torch.Tensor:
        table, times = self.graft_log_sigmas, self.graft_times
        level = sigma.to(table).log().reshape(-1)
        high = torch.searchsorted(table, level).clamp(1, len(table) - 1)
        share = ((level - table[high - 1]) / (table[high] - table[high - 1])).clamp(0, 1)
        found = times[high - 1] + share * (times[high] - times[high - 1])
        return found.reshape(sigma.shape).to(sigma)

    made = copy.deepcopy(sampling).to("cpu")
    table = made.sigmas.detach().clone()
    made.register_buffer("graft_times", made.timestep(table).float(), persistent=False)
    made.register_buffer("graft_log_sigmas", table.float().log(), persistent=False)
    made.__class__ = type("TimesBetween", (type(sampling),), {"timestep": timestep})
    return made
