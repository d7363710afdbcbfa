# SPDX-License-Identifier: Apache-2.0
"""A diffusers UNet2DModel as a ComfyUI MODEL: it denoises pictures themselves, by class or without any condition.

The network is the library's own, its layers the host's kinds, so that the host loads, casts and patches them one by
one under diffusers' names. The table of noise levels is the scheduler's: sigma = sqrt((1 - a) / a), a its cumulated
alphas (Ho et al. 2020, arXiv 2006.11239; Nichol and Dhariwal 2021, arXiv 2102.09672).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...registry import unknown
from ...trainers.facts import ZERO_SNR

LABELS = "graft_labels"  # in a CONDITIONING: class numbers ``[K]``, int64
NO_CLASS = -1
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_NO_PICTURE = (
    4.8973451890853435e-08  # the host's own cumulated alpha of a level without any picture
)
_COPIES = 12  # of the widest activation that are alive at once, about


@dataclass(frozen=True, eq=False)
class Ddpm:
    """What a pipeline is beside its weights.

    Attributes:
        unet: Settings of the network, as in ``unet/config.json``.
        scheduler: Settings of the schedule, as in ``scheduler/scheduler_config.json``.
        unlabelled: The class that stands for no class; None where there is none.
    """

    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: int | None = None

    @property
    def embedded(self) -> int:
        """How many classes the network tells apart, the one for no class among them; 0 without any."""
        return int(self.unet.get("num_class_embeds") or 0)

    @property
    def classes(self) -> int:
        """How many classes a user can ask for."""
        return self.embedded - (self.unlabelled is not None)

    @property
    def channels(self) -> int:
        """Of a picture: 1 or 3."""
        return int(self.unet.get("in_channels", 3))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that it was made for."""
        size = self.unet.get("sample_size") or 64
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return int(width), int(height)

    @property
    def step(self) -> int:
        """What divides both sides of every picture."""
        return int(2 ** (len(self.unet.get("block_out_channels", (1,) * 4)) - 1))

    def filled(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels for the network.

        Args:
            labels: Class numbers ``[K]``, `NO_CLASS` where a picture has none.

        Raises:
            ValueError: There is no such class, or none for no class.
        """
        if bool((labels == NO_CLASS).any()):
            if self.unlabelled is None:
                raise ValueError(
                    f"This MODEL has {self.classes} classes and none for pictures without one: give every picture a "
                    "class, and Class Labels for positive and negative."
                )
            labels = torch.where(labels == NO_CLASS, self.unlabelled, labels)
        if bool((labels < 0).any()) or bool((labels >= self.embedded).any()):
            raise ValueError(
                f"Class {int(labels.max())} was asked for; this MODEL has {self.classes} classes, 0 to "
                f"{self.classes - 1}."
            )
        return labels


def of_model(model: Any) -> Ddpm | None:
    """What pipeline a MODEL is; None for all other kinds.

    Args:
        model: A ModelPatcher or BaseModel.
    """
    found = getattr(getattr(model, "model", model), "ddpm", None)
    return found if isinstance(found, Ddpm) else None


def needed(model: Any) -> Ddpm:
    """What pipeline a MODEL is.

    Raises:
        ValueError: It is none.
    """
    found = of_model(model)
    if found is None:
        kind = type(getattr(model, "model", model)).__name__
        raise ValueError(
            f"The MODEL ({kind}) is no pixel diffusion model: connect one from Load Pixel Diffusion or New Pixel "
            "Diffusion."
        )
    return found


def diffusers() -> Any:
    """The library.

    Raises:
        RuntimeError: It is not installed, or cannot be imported.
    """
    try:
        module = importlib.import_module("diffusers")
        # Its parts are imported when they are first asked for, which fails here and not later.
        return module if module.UNet2DModel else module
    except (ImportError, AttributeError, RuntimeError) as error:
        raise RuntimeError(
            "Pixel diffusion models need the library diffusers, which this Python cannot import "
            f"({error}): run `pip install diffusers` in ComfyUI's Python, then start ComfyUI again."
        ) from error


@dataclass(frozen=True)
class Clip:
    """Keeps the denoised picture within the range of pixels, as the scheduler does with ``clip_sample``."""

    limit: float

    def __call__(self, args: Mapping[str, Any]) -> torch.Tensor:
        """What the sampler takes for the denoised picture."""
        denoised: torch.Tensor = args["denoised"].clamp(-self.limit, self.limit)
        return denoised


def build(
    ddpm: Ddpm,
    state: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
    again: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
) -> Any:
    """Make the MODEL.

    Args:
        ddpm: What it is.
        state: The network's tensors by diffusers' names, kept as they are stored; None makes new ones.
        seed: Of new ones.
        again: What makes this MODEL again and its arguments, for hosts that copy models so.

    Returns:
        A ModelPatcher.

    Raises:
        RuntimeError: diffusers is not installed.
        ValueError: The settings, or the tensors, do not fit.
    """
    import comfy.model_management as mm
    import comfy.model_patcher

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = make_network(ddpm)
    if state is not None:
        network.load_state_dict(dict(state), assign=True)
    network.requires_grad_(False).eval()
    dtype, device = network.dtype, mm.get_torch_device()
    manual = mm.unet_manual_cast(dtype, device)
    _use_host_layers(network, manual is not None)
    archive = getattr(mm, "archive_model_dtypes", None)
    if archive is not None:
        archive(network)
    config = _model_config(ddpm)
    config.set_inference_dtype(dtype, manual)
    offload = mm.unet_offload_device()
    base = _base_model()(ddpm, config, network, offload)
    # Never the dynamic patcher: it has no copy to train on unless a core loader made it.
    patcher = comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=offload)
    if again is not None and hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = again
    if ddpm.scheduler.get("clip_sample", True):
        limit = float(ddpm.scheduler.get("clip_sample_range", 1.0))
        patcher.set_model_sampler_post_cfg_function(Clip(limit))
    return patcher


def make_network(ddpm: Ddpm) -> Any:
    """The network with weights of its own, drawn from torch's generator.

    Raises:
        ValueError: The library refuses the settings.
    """
    given = {k: v for k, v in ddpm.unet.items() if not k.startswith("_")}
    known = inspect.signature(diffusers().UNet2DModel.__init__).parameters
    for name in given:
        if name not in known:
            text = unknown("setting of the network", name, known)
            raise ValueError(f"{text} A newer diffusers may know it.")
    try:
        return _network_class()(**given)
    except (ValueError, TypeError, NotImplementedError, ZeroDivisionError) as error:
        raise ValueError(f"diffusers cannot make this network: {error}") from error


@functools.lru_cache(maxsize=1)
def _network_class() -> Any:
    class PixelUNet(diffusers().UNet2DModel):  # type: ignore[misc]
        """diffusers' network, called as the host calls its own."""

        _computes_in: torch.dtype | None = None

        @property
        def dtype(self) -> torch.dtype:
            """Of the weights; inside a forward that of the input, to which embeddings are cast."""
            return self._computes_in or self.conv_in.weight.dtype

        def forward(
            self, x: torch.Tensor, timesteps: torch.Tensor, *_: Any, y: Any = None, **__: Any
        ) -> torch.Tensor:
            step = 2 ** (len(self.down_blocks) - 1)
            if x.shape[-1] % step or x.shape[-2] % step:
                raise ValueError(
                    f"This MODEL works on pictures whose sides {step} px divide, not {x.shape[-1]} x {x.shape[-2]}."
                )
            if isinstance(getattr(self, "time_proj", None), nn.Embedding):
                timesteps = timesteps.long()
            self._computes_in = x.dtype
            try:
                return super().forward(x, timesteps, y, return_dict=False)[0]
            finally:
                self._computes_in = None

    return PixelUNet


def _use_host_layers(network: nn.Module, casts: bool) -> None:
    """Make layers the host's, which it can keep elsewhere, cast and patch; names, weights and values stay."""
    import comfy.ops

    own = comfy.ops.manual_cast if casts else comfy.ops.disable_weight_init
    names = ("Linear", "Conv1d", "Conv2d", "ConvTranspose2d", "GroupNorm", "LayerNorm", "Embedding")
    kinds = {getattr(nn, name): getattr(own, name) for name in names}
    for name, module in network.named_modules():
        kind = kinds.get(type(module))
        if kind is None:
            continue
        module.__class__ = kind
        if isinstance(module, nn.Embedding):
            module.register_parameter("bias", None)
            module.takes_labels = name == "class_embedding"  # type: ignore[assignment]


def _model_config(ddpm: Ddpm) -> Any:
    from comfy import latent_formats, supported_models_base

    class Pixels(latent_formats.LatentFormat):
        """Pictures themselves, in -1..1."""

        scale_factor = 1.0
        latent_channels = ddpm.channels
        spacial_downscale_ratio = 1
        latent_rgb_factors = torch.eye(3).tolist() if ddpm.channels == 3 else [[1.0] * 3]

    class DDPM(supported_models_base.BASE):
        """The settings that the host asks a model for."""

        unet_extra_config: dict[str, Any] = {}
        latent_format = Pixels

    return DDPM({**ddpm.unet, "disable_unet_model_creation": True})


@functools.lru_cache(maxsize=1)
def _base_model() -> Any:
    from comfy import conds, model_base

    class PixelDiffusion(model_base.BaseModel):
        """The host's model around the network."""

        def __init__(self, ddpm: Ddpm, config: Any, network: nn.Module, device: Any) -> None:
            kinds = ("EPS", "V_PREDICTION", "IMG_TO_IMG")  # the host has no name for the last one
            kind = dict(zip(PREDICTIONS, kinds, strict=True))[prediction(ddpm.scheduler)]
            super().__init__(config, model_type=model_base.ModelType[kind], device=device)
            self.diffusion_model = network
            self.model_sampling = make_sampling(ddpm.scheduler)
            self.ddpm = ddpm

        def extra_conds(self, **given: Any) -> dict[str, Any]:
            """The class numbers, where there are classes."""
            if not self.ddpm.embedded:
                return {}
            labels = given.get(LABELS)
            if labels is None:
                labels = torch.tensor([NO_CLASS])
            labels = self.ddpm.filled(labels).to(given.get("device", "cpu"))
            return {"y": conds.CONDRegular(labels)}

        def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
            """Bytes of activations for pictures of this shape."""
            widest = self.ddpm.unet.get("block_out_channels", (224,))[0]
            return float(_COPIES * 4 * widest * input_shape[0] * math.prod(input_shape[2:]))

    return PixelDiffusion


def prediction(scheduler: Mapping[str, Any]) -> str:
    """What the network predicts.

    Raises:
        ValueError: It is nothing that is known.
    """
    kind = str(scheduler.get("prediction_type", PREDICTIONS[0]))
    if kind not in PREDICTIONS:
        raise ValueError(unknown("prediction_type", kind, PREDICTIONS))
    return kind


def sigmas(scheduler: Mapping[str, Any]) -> torch.Tensor:
    """The noise levels of a schedule, ascending, fp64 ``[N]``.

    Args:
        scheduler: Settings, as in ``scheduler_config.json``.

    Raises:
        ValueError: diffusers refuses them.
    """
    kind = diffusers().DDPMScheduler
    known = inspect.signature(kind.__init__).parameters
    given = {k: v for k, v in scheduler.items() if k in known and k != "variance_type"}
    try:
        cumulated = kind(**given).alphas_cumprod.double()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"diffusers cannot make this schedule: {error}") from error
    cumulated = torch.where(cumulated > 0, cumulated, _NO_PICTURE)
    levels = ((1 - cumulated) / cumulated).sqrt()
    if not bool((levels.diff() > 0).all()) or not bool((levels > 0).all()):
        raise ValueError(
            "The noise of this schedule does not grow with every step: correct its betas."
        )
    return levels


def make_sampling(scheduler: Mapping[str, Any]) -> Any:
    """The host's `model_sampling` for a schedule.

    Its ``trained_levels`` says how many levels of the table a training draws from: an eps network is asked for nothing
    at a last level that is noise alone, as that of squaredcos_cap_v2 is.
    """
    import comfy.model_sampling as host

    kinds = dict(zip(PREDICTIONS, (host.EPS, host.V_PREDICTION, host.X0), strict=True))
    kind = prediction(scheduler)

    class Sampling(host.ModelSamplingDiscrete, kinds[kind]):  # type: ignore[misc,valid-type]
        """A table of levels of any length."""

        trained_levels = 0

        def percent_to_sigma(self, percent: float) -> float:
            """The level at a share of the steps."""
            if percent <= 0.0:
                return 999999999.9
            if percent >= 1.0:
                return 0.0
            place = torch.tensor((1.0 - percent) * (len(self.sigmas) - 1))
            return float(self.sigma(place))

    levels = sigmas(scheduler)
    with torch.inference_mode(False), torch.no_grad():
        made = Sampling()
        made.set_sigmas(levels)
    made.num_timesteps = made.trained_levels = len(levels)
    if kind == "epsilon":
        made.trained_levels = int((levels.square().reciprocal() >= ZERO_SNR).sum())
    return made
