# SPDX-License-Identifier: Apache-2.0
"""Pictures in mid run: ComfyUI's own sampler on the training patcher with its adapters attached.

A run with previews trains what a run without them trains: generators, flags, replaced forwards
and the weights' places are afterwards as they were, whatever happens in between.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...registry import unknown
from ...trainers.preview import Preview
from ..files import paths

AT_ONCE = 4  # pictures of one call where nobody compares them with a KSampler's


class TraineeLost(RuntimeError):
    """The training cannot go on after a preview: its weights are not where they were."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """The encoded texts of a preview, as CONDITIONING lists on the CPU."""

    positive: tuple[list[Any], ...]
    negative: list[Any]


def check(settings: Preview) -> None:
    """Check the names of a preview's sampler and scheduler against the host's.

    Args:
        settings: What is to be sampled.

    Raises:
        ValueError: The host has no such sampler or scheduler; names near ones.
    """
    import comfy.samplers

    for kind, name, known in (
        ("sampler", settings.sampler, comfy.samplers.KSampler.SAMPLERS),
        ("scheduler", settings.scheduler, comfy.samplers.KSampler.SCHEDULERS),
    ):
        if name not in known:
            raise ValueError(unknown(kind, name, known))


def encode_prompts(clip: Any, settings: Preview) -> Prompts:
    """Encode the prompts of a preview, once for a whole run.

    Args:
        clip: The CLIP on the wire.
        settings: Prompts and the negative prompt.

    Returns:
        The conditionings, for ``sample``.
    """

    def encode(text: str) -> list[Any]:
        with torch.no_grad():
            encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        # They outlive the node: no inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            return [[_kept(cond), _kept(extra)] for cond, extra in encoded]

    return Prompts(tuple(encode(text) for text in settings.prompts), encode(settings.negative))


def sample(
    trainee: Any,
    prompts: Prompts,
    settings: Preview,
    vae: Any,
    *,
    size: tuple[int, int] = (512, 512),
    sampler: Any = None,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample one picture a prompt from the model as it is now.

    Prompt ``i`` is sampled with the seed ``settings.seed + i``, so pictures of one run compare.

    Args:
        trainee: Has the loaded training ``patcher`` and its ``model``.
        prompts: What ``encode_prompts`` gave.
        settings: Sampler settings.
        vae: The VAE on the wire.
        size: Width and height in pixels where the settings have 0.
        sampler: SAMPLER in place of the settings' sampler.
        sigmas: SIGMAS ``[steps + 1]`` in place of the settings' scheduler and steps.

    Returns:
        IMAGE ``[N, h, w, 3]``, float32 in 0..1 on the CPU.

    Raises:
        ValueError: The host has no such sampler or scheduler.
    """
    with torch.inference_mode(False), torch.no_grad(), untouched(trainee):
        latents = sampled(trainee.patcher, prompts, settings, vae, size, sampler, sigmas)
        return torch.cat([decoded(vae, latent) for latent in latents])


def sample_latents(
    trainee: Any,
    prompts: Prompts,
    settings: Preview,
    vae: Any,
    size: tuple[int, int],
    poll: Callable[[int], None] = lambda count: None,
) -> list[torch.Tensor]:
    """As ``sample``, several at once and not decoded: latents ``[C, h, w]`` in the model's units, fp32 on the CPU."""
    with torch.inference_mode(False), torch.no_grad(), untouched(trainee):
        latents = sampled(trainee.patcher, prompts, settings, vae, size, at_once=AT_ONCE, poll=poll)
        return [
            latent.clone()
            for batch in latents
            for latent in trainee.model.process_latent_in(batch.float().cpu())
        ]


def sampled(
    patcher: Any,
    prompts: Prompts,
    settings: Preview,
    vae: Any,
    size: tuple[int, int],
    sampler: Any = None,
    sigmas: torch.Tensor | None = None,
    at_once: int = 1,
    poll: Callable[[int], None] = lambda count: None,
) -> list[torch.Tensor]:
    """Latents as the host's sampler leaves them, of one picture or ``at_once`` each; nothing is given back."""
    check(settings)
    width, height = settings.width or size[0], settings.height or size[1]
    empty = _empty_latent(patcher, vae, width, height)
    rest = (prompts.negative, empty, settings)
    latents, start = [], 0
    while start < len(prompts.positive):
        wanted = prompts.positive[start : start + at_once]
        together = _together(wanted)
        positive, count = (wanted[0], 1) if together is None else (together, len(wanted))
        poll(count)
        latents.append(_sample(patcher, positive, *rest, start, count, sampler, sigmas))
        start += count
    return latents


def decoded(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """The pictures ``[N, h, w, 3]`` of a latent, float32 in 0..1 on the CPU."""
    pixels = vae.decode(latent)
    if pixels.ndim == 5:  # video autoencoders: the first frame
        pixels = pixels[:, 0]
    return pixels[..., :3].detach().to("cpu", torch.float32, copy=True).clamp(0, 1)


def save_samples(images: torch.Tensor, run: str, step: int) -> tuple[dict[str, str], ...]:
    """Write pictures as PNG into the samples folder of a run.

    Args:
        images: IMAGE ``[N, h, w, 3]`` in 0..1.
        run: Id of the run.
        step: The step that they were sampled after.

    Returns:
        References for the browser: ``filename``, ``subfolder`` and ``type``.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    from PIL import Image

    folder = paths.run_folder(run) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    subfolder = paths.relative_to_output(folder)
    refs = []
    for index, image in enumerate(images):
        pixels = (image.detach().cpu().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        picture = Image.fromarray(pixels.numpy())
        path = folder / f"step_{step:06}_{index}.png"
        paths.atomic_write(path, functools.partial(picture.save, format="PNG"))
        refs.append({"filename": path.name, "subfolder": subfolder, "type": "output"})
    return tuple(refs)


@contextlib.contextmanager
def untouched(trainee: Any) -> Iterator[None]:
    """Give generators, flags, forwards and the place of the weights back at the end of the block.

    Args:
        trainee: Has the loaded training ``patcher`` and its ``model``.

    Raises:
        TraineeLost: The weights are not back, whatever else went wrong; the user's interrupt comes first.
    """
    import comfy.model_management as management

    interrupt = management.InterruptProcessingException
    before = _Weights(trainee.model)
    flags = {name: vars(management)[name] for name in ("in_training",) if hasattr(management, name)}
    with generators_kept():
        is_interrupted = False
        try:
            yield
        except interrupt:
            is_interrupted = True
            raise
        finally:
            vars(management).update(flags)
            try:
                _load_again(trainee)
            except Exception as error:
                if not is_interrupted and not isinstance(error, interrupt):
                    text = (
                        f"The model in training could not be loaded again after a preview: {error}"
                    )
                    raise TraineeLost(text) from error
                if not is_interrupted:
                    raise
            finally:
                before.restore()


def _load_again(trainee: Any) -> None:
    """Decoding may have pushed the trainee off the device, and its patches off its weights."""
    import comfy.model_management

    if hasattr(trainee, "reload"):
        trainee.reload()
        return
    with torch.inference_mode(False), torch.no_grad():
        comfy.model_management.load_models_gpu([trainee.patcher], force_full_load=True)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Give the state of every global random generator back at the end of the block."""
    import numpy as np

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    devices = [
        (backend, backend.get_rng_state_all())
        for backend in (torch.cuda, getattr(torch, "xpu", None))
        if backend is not None and backend.is_available() and backend.is_initialized()
    ]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for backend, states in devices:
            backend.set_rng_state_all(states)
        if mps is not None:
            torch.mps.set_rng_state(mps)


class _Weights:
    """Flags, forwards and kinds of a model's tensors, by name, as they were."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._forwards = {m: m.__dict__.get("forward") for m in model.modules()}
        self._modes = {m: m.training for m in self._forwards}
        self._grads = {name: p.requires_grad for name, p in model.named_parameters()}
        self._plain = {name for name, t in _named_tensors(model) if not t.is_inference()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def restore(self) -> None:
        for module, forward in self._forwards.items():
            module.training = self._modes[module]
            if module.__dict__.get("forward") is forward:
                continue
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.forward = forward
        for name, tensor in list(_named_tensors(self._model)):
            if name in self._plain and tensor.is_inference():
                _replace(self._model, name, tensor)
        for name, parameter in self._model.named_parameters():
            wanted = self._grads.get(name, parameter.requires_grad)
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _replace(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    # A weight that went back to its backup is the loader's inference tensor again, which no
    # backward pass can go through.
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(tensor.clone(), requires_grad=False)
    else:
        module._buffers[leaf] = tensor.clone()


def _together(conds: Sequence[list[Any]]) -> list[Any] | None:
    """One conditioning for a batch, or None where the conditionings are not of one kind."""
    if any(len(cond) != 1 or cond[0][1].keys() != conds[0][0][1].keys() for cond in conds):
        return None
    texts = _joined([cond[0][0] for cond in conds])
    extras = {key: _joined([cond[0][1][key] for cond in conds]) for key in conds[0][0][1]}
    if texts is None or any(value is None for value in extras.values()):
        return None
    return [[texts, extras]]


def _joined(values: Sequence[Any]) -> Any:
    """The values of a batch in one, or None where they cannot be."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        is_batch = first.ndim > 0 and all(v.shape == first.shape for v in values)
        return torch.cat(list(values)) if is_batch and len(first) == 1 else None
    is_plain = isinstance(first, (bool, int, float, str))
    return first if is_plain and all(value == first for value in values) else None


def _empty_latent(patcher: Any, vae: Any, width: int, height: int) -> torch.Tensor:
    import comfy.sample

    factor = vae.spacial_compression_encode()
    channels = patcher.get_model_object("latent_format").latent_channels
    empty = torch.zeros([1, channels, max(1, height // factor), max(1, width // factor)])
    return comfy.sample.fix_empty_latent_channels(patcher, empty)


def _sample(
    patcher: Any,
    positive: list[Any],
    negative: list[Any],
    empty: torch.Tensor,
    settings: Preview,
    start: int,
    count: int,
    sampler: Any,
    sigmas: torch.Tensor | None,
) -> torch.Tensor:
    """Latents of the pictures from ``start`` on; each has its own noise, whatever it is sampled with."""
    import comfy.model_management
    import comfy.sample
    import comfy.samplers

    comfy.model_management.throw_exception_if_processing_interrupted()
    seeds = [(settings.seed + start + i) % 2**64 for i in range(count)]
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
    latent = empty.repeat(count, *[1] * (empty.ndim - 1))
    shared: dict[str, Any] = {"disable_pbar": True, "seed": seeds[0]}
    if sampler is None and sigmas is None:
        names = (settings.sampler, settings.scheduler)
        return comfy.sample.sample(
            patcher,
            noise,
            settings.steps,
            settings.cfg,
            *names,
            positive,
            negative,
            latent,
            **shared,
        )
    if sampler is None:
        sampler = comfy.samplers.sampler_object(settings.sampler)
    if sigmas is None:
        table = patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(table, settings.scheduler, settings.steps)
    return comfy.sample.sample_custom(
        patcher, noise, settings.cfg, sampler, sigmas.clone(), positive, negative, latent, **shared
    )


def _kept(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_kept(item) for item in value)
    return value
