# SPDX-License-Identifier: Apache-2.0
"""The noise levels of a MODEL, as samplers and schedules see them."""

from typing import Any

import torch

from ...samplers import Levels
from ...trainers.facts import facts
from ..model.sampling import PATCH, HostSampling


def of_sampling(sampling: Any) -> Levels:
    """The levels of the host's `model_sampling`, with the time of each where only those of its table exist."""
    with torch.inference_mode(False), torch.no_grad():
        known = HostSampling(sampling)
        found = facts(known)
        times = None
        if found.is_discrete:
            table = torch.as_tensor(sampling.sigmas).detach().clone()
            times = sampling.timestep(table).detach().cpu().clone()
        return Levels(found.family, known.sigmas.double(), times)


def of_model(model: Any) -> Levels:
    """The levels of a MODEL on the wire, with its object patch where it has one; it is not loaded."""
    return of_sampling(model.get_model_object(PATCH))
