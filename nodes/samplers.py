# SPDX-License-Identifier: Apache-2.0
"""Samplers, their noise levels, and EDM preconditioning, for ComfyUI's own sampling nodes."""

from typing import Any

from comfy_api.latest import io

from ..host import graph
from ..host.sampling import edm_model
from ..host.sampling import sampler as samplers
from ..host.sampling import schedule as schedules
from ..host.sampling.edm_model import EDMModel
from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.edm_heun import EDMHeun
from .schema import choice, field, number, output, schema, socket, text, whole

_OPTIONS = "Further settings as name=value with commas between them; the help page lists them."


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSampler",
            display_name="Sampler",
            category="graft/sampling",
            description=(
                "A SAMPLER for SamplerCustom and SamplerCustomAdvanced: the EDM samplers with their noise, "
                "DPM-Solver++ 2M, DDIM with eta, TCD and LCM. The noise it adds is of the seed, the level and the "
                "place in the batch: a picture is the same in a batch of any size."
            ),
            hidden=[io.Hidden.unique_id],
            search_aliases=[
                "edm",
                "heun",
                "euler",
                "churn",
                "dpmpp",
                "ddim",
                "tcd",
                "lcm",
                "ksampler select",
            ],
            inputs=[
                choice(
                    "sampler",
                    "edm-heun: second order, two evaluations a step. edm-euler: first order. dpmpp-2m, dpmpp-2m-sde: "
                    "second order from the step before. ddim: with eta. tcd, lcm: few steps, for models distilled so.",
                    SAMPLERS.names(),
                    "edm-heun",
                ),
                field(EDMHeun, "s_churn", max=10_000.0, step=1.0),
                field(EDMHeun, "s_tmin"),
                field(EDMHeun, "s_tmax", step=0.1),
                field(EDMHeun, "s_noise"),
                number(
                    "eta",
                    "eta of ddim and dpmpp-2m-sde, gamma of tcd; -1 is the sampler's own: 0, 1 and 0.3.",
                    -1.0,
                    min=-1.0,
                    max=10.0,
                ),
                text("options", _OPTIONS, advanced=True),
                socket(
                    io.Sigmas,
                    "sigmas",
                    "The SIGMAS to be sampled at: TEXT then counts the evaluations of the model.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.Sampler, "SAMPLER", "For SamplerCustom and SamplerCustomAdvanced."),
                output(io.String, "TEXT", "Order, noise, and how often the model is asked (NFE)."),
            ],
        )

    @classmethod
    def execute(
        cls,
        sampler: str,
        s_churn: float,
        s_tmin: float,
        s_tmax: float,
        s_noise: float,
        eta: float,
        options: str,
        sigmas: Any = None,
    ) -> io.NodeOutput:
        churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        settings, notes = samplers.build(sampler, options, eta, **churn)
        said = "\n".join([samplers.describe(settings, sigmas), *notes])
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(samplers.sampler(settings), said)


class Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftSchedule",
            display_name="Noise Schedule",
            category="graft/sampling",
            description=(
                "SIGMAS: the noise levels that a sampler goes down, by the schedules of Karras et al. With a MODEL "
                "connected, the levels lie between the ends of its own."
            ),
            hidden=[io.Hidden.unique_id],
            search_aliases=[
                "sigmas",
                "scheduler",
                "karras",
                "exponential",
                "vp",
                "ve",
                "iddpm",
                "edm",
            ],
            inputs=[
                choice(
                    "schedule",
                    "karras: even in sigma to the power 1 / rho. exponential, ve: even in its logarithm. vp: even in "
                    "time. iddpm: the cosine levels. discrete: karras on a MODEL's own levels. distilled: the times of "
                    "LCM and TCD models. design-space: any time and power.",
                    SCHEDULES.names(),
                    "karras",
                ),
                whole("steps", "Sampling steps.", 18, min=1, max=10_000),
                number(
                    "sigma_min",
                    "Lowest noise level before 0; 0 is the MODEL's, or the schedule's own without one.",
                    0.0,
                    min=0.0,
                    max=1e6,
                    step=0.001,
                ),
                number(
                    "sigma_max",
                    "Highest noise level; 0 is the MODEL's, or the schedule's own without one.",
                    0.0,
                    min=0.0,
                    max=1e6,
                ),
                number(
                    "rho",
                    "Of karras, discrete and design-space: more puts more of the steps at low noise.",
                    7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                ),
                text("options", _OPTIONS, advanced=True),
                socket(
                    io.Model,
                    "model",
                    "The model to be sampled; it is not loaded. discrete and distilled need it.",
                    optional=True,
                ),
            ],
            outputs=[
                output(io.Sigmas, "SIGMAS", "The levels, from the highest to 0."),
                output(
                    io.String, "TEXT", "Steps and ends, and what of it the MODEL has not learned."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        schedule: str,
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        options: str,
        model: Any = None,
    ) -> io.NodeOutput:
        widgets = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
        sigmas, said = schedules.sigmas(schedule, steps, options, model, **widgets)
        graph.show_text(cls.hidden.unique_id, said)
        return io.NodeOutput(sigmas, said)


class EdmModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="GraftEdmModel",
            display_name="EDM Preconditioning",
            category="graft/sampling",
            description=(
                "A MODEL with the preconditioning of Karras et al.: what its network's output means, at which noise "
                "level, and what its latents' mean and spread are. It starts out right for Playground v2.5."
            ),
            search_aliases=[
                "playground",
                "edm",
                "sigma_data",
                "ModelSamplingContinuousEDM",
                "model sampling",
            ],
            inputs=[
                socket(io.Model, "model", "The model; it is not loaded."),
                *(field(EDMModel, one) for one in EDMModel.__dataclass_fields__),
            ],
            outputs=[output(io.Model, "MODEL", "The model, to be sampled or trained so.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        preconditioning: str,
        sigma_data: float,
        sigma_min: float,
        sigma_max: float,
        latents: str,
    ) -> io.NodeOutput:
        settings = EDMModel(preconditioning, sigma_data, sigma_min, sigma_max, latents)
        return io.NodeOutput(edm_model.patched(model, settings))


NODES = [Sampler, Schedule, EdmModel]
