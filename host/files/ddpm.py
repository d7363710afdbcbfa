# SPDX-License-Identifier: Apache-2.0
"""Pixel diffusion models as diffusers keeps them: a folder with model_index.json, unet/ and scheduler/.

Folders come from anyone: paths stay inside the host's folders, settings are within limits, and the names and shapes of
all tensors are compared with the network's before one is read.
"""

import difflib
import filecmp
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ...plain import plain
from ...safetensors_header import read_header
from ..model import ddpm
from ..model.ddpm import Ddpm
from . import paths
from .patched_weights import patched

INDEX, OWN = "model_index.json", "graft.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREFIX = "diffusion_model."
_MAX_JSON = 2**20
_MAX_FOLDERS, _DEPTH = 2000, 4
_LIMITS = {
    "in_channels": (1, 3),
    "out_channels": (1, 3),
    "layers_per_block": (1, 16),
    "num_class_embeds": (1, 100_000),
    "norm_num_groups": (1, 1024),
    "attention_head_dim": (1, 4096),
    "time_embedding_dim": (1, 65536),
}
_MAX_WIDTH, _MAX_LEVELS = 8192, 12
_MAX_NEW = 300_000_000  # parameters; those of 256 px have 114 million as a rule
# What diffusers called the parts of an attention before 0.18.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load(name: str) -> Any:
    """Load a pipeline's folder.

    Args:
        name: Of the folder, below one of the host's folders for diffusers models.

    Returns:
        A ModelPatcher.

    Raises:
        ValueError: There is no such folder, or it holds something else or is damaged; says what to do.
        RuntimeError: diffusers is not installed.
    """
    return load_folder(find(name))


def load_folder(folder: Path, disable_dynamic: bool = False) -> Any:
    """As `load`, of a folder that is known to be allowed.

    Args:
        folder: The folder.
        disable_dynamic: What ComfyUI asks of its loaders; this MODEL is never dynamic.
    """
    facts = _facts(folder)
    return ddpm.build(facts, _state(folder, facts), again=(load_folder, (folder,)))


def make(facts: Ddpm, seed: int, disable_dynamic: bool = False) -> Any:
    """A new MODEL.

    Args:
        facts: What it shall be.
        seed: Of its weights.
        disable_dynamic: What ComfyUI asks of its loaders; this MODEL is never dynamic.

    Raises:
        ValueError: The settings are out of their limits, or do not go together.
    """
    _check(facts, "New Pixel Diffusion")
    with torch.device("meta"):
        count = sum(p.numel() for p in ddpm.make_network(facts).parameters())
    if count > _MAX_NEW:
        raise ValueError(
            f"This model would have {count / 1e6:.0f} million parameters; {_MAX_NEW / 1e6:.0f} million are possible. "
            "Lower width, levels or layers."
        )
    return ddpm.build(facts, seed=seed, again=(make, (facts, seed)))


def find(name: str) -> Path:
    """The folder of a pipeline.

    Raises:
        ValueError: There is none of this name; names near ones.
    """
    parts = str(name).strip().replace("\\", "/").strip("/").split("/")
    wanted = "/".join(parts)
    for base in _bases():
        if wanted and ".." not in parts and ":" not in wanted:
            folder = paths.inside(base, wanted)
            if (folder / INDEX).is_file():
                return folder
    known = names()
    near = difflib.get_close_matches(wanted, known, 3, 0.3) or known[:5]
    there = f"There are: {', '.join(map(plain, near))}." if near else "There are none yet."
    raise ValueError(
        f"There is no diffusers pipeline {plain(wanted, 100)!r} in models/diffusers or output/diffusers. {there}"
    )


def names() -> list[str]:
    """Folders with a pipeline below the host's folders for diffusers models, with forward slashes."""
    return sorted({name for base in _bases() for name in _inside(base)}, key=str.casefold)


def fingerprint(name: str) -> str:
    """What changes when the files of a pipeline do."""
    try:
        folder = find(name)
    except ValueError:
        return ""
    files = [folder / INDEX, folder / OWN, *folder.glob("unet/*"), *folder.glob("scheduler/*")]
    return " ".join(paths.fingerprint(file) for file in sorted(files) if file.is_file())


def save(model: Any, name: str) -> tuple[str, Path]:
    """Write a MODEL, with what was trained of it, as a folder that DDPMPipeline.from_pretrained loads.

    Args:
        model: A pixel diffusion MODEL; its patches become part of the weights.
        name: Of the folder in output/diffusers; a number is added where another model has it.

    Returns:
        The name that Load Pixel Diffusion knows it by, and the folder.

    Raises:
        ValueError: The MODEL is another, or the name cannot be a folder's.
        OSError: The disk is full, or the folder cannot be written.
    """
    facts, base = ddpm.needed(model), output_folder()
    paths.check_writable(base)
    paths.safe_name(name, "name of the folder")
    made = base / f".graft-{uuid.uuid4().hex}.tmp"
    try:
        _write(made, facts, _weights(model))
        folder = next(f for f in _candidates(base, name) if not f.exists() or _equal(made, f))
        if not folder.exists():
            os.replace(made, folder)  # noqa: PTH105 - one call for both kinds of system
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder.name, folder


def output_folder() -> Path:
    """``output/diffusers``, registered, so that loaders find what is in it."""
    import folder_paths

    folder = paths.inside(paths.output_folder(), "diffusers")
    known = [os.path.realpath(path) for path in folder_paths.get_folder_paths("diffusers")]
    if os.path.realpath(folder) not in known:
        folder_paths.add_model_folder_path("diffusers", str(folder))
    return folder


def _bases() -> list[Path]:
    import folder_paths

    output_folder()
    return [Path(path) for path in folder_paths.get_folder_paths("diffusers")]


def _inside(base: Path) -> Iterator[str]:
    pending, seen = [(base, 0)], 0
    while pending and seen < _MAX_FOLDERS:
        folder, depth = pending.pop()
        seen += 1
        if (folder / INDEX).is_file():
            yield folder.relative_to(base).as_posix()
        elif depth < _DEPTH and folder.is_dir():
            inside = (f for f in folder.iterdir() if f.is_dir() and not f.is_symlink())
            pending += [(f, depth + 1) for f in inside if not f.name.startswith(".")]


def _facts(folder: Path) -> Ddpm:
    index = _json(folder, INDEX)
    unet = index.get("unet")
    if not isinstance(unet, list) or unet[-1:] != ["UNet2DModel"]:
        kind = plain(str(index.get("_class_name")), 80)
        raise ValueError(
            f"'{plain(folder.name)}' is a {kind}; a pixel diffusion model is a DDPMPipeline, whose unet is a "
            "UNet2DModel. Use the loader for its kind."
        )
    scheduler = _json(folder, "scheduler/scheduler_config.json")
    own = _json(folder, OWN) if (folder / OWN).is_file() else {}
    facts = Ddpm(_json(folder, "unet/config.json"), scheduler, own.get("unlabelled"))
    _check(facts, plain(folder.name))
    return facts


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = paths.inside(folder, name)
    if not path.is_file():
        raise ValueError(
            f"'{plain(folder.name)}' has no {name}: copy the whole folder of the pipeline."
        )
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(
            f"{name} of '{plain(folder.name)}' is larger than 1 MiB: it is no settings file."
        )
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} of '{plain(folder.name)}' cannot be read: {error}") from error
    if not isinstance(made, dict):
        raise ValueError(f"{name} of '{plain(folder.name)}' is no object of settings.")
    return made


def _check(facts: Ddpm, where: str) -> None:
    """Compare settings of others with limits, before anything is made of them."""
    unet, scheduler = facts.unet, facts.scheduler
    for name, (low, high) in _LIMITS.items():
        value = unet.get(name)
        if value is not None and not (_whole(value) and low <= value <= high):
            raise ValueError(
                f"{where}: {name} is {plain(str(value), 80)}; a whole number from {low} to {high} is allowed."
            )
    widths = unet.get("block_out_channels", (224, 448, 672, 896))
    is_list = isinstance(widths, list | tuple) and 0 < len(widths) <= _MAX_LEVELS
    if not (is_list and all(_whole(w) and 0 < w <= _MAX_WIDTH for w in widths)):
        raise ValueError(
            f"{where}: block_out_channels is {plain(str(widths), 80)}; up to {_MAX_LEVELS} whole numbers up to "
            f"{_MAX_WIDTH} are allowed."
        )
    channels = (facts.channels, unet.get("out_channels", 3))
    if channels not in ((1, 1), (3, 3)):
        raise ValueError(
            f"{where}: the network takes {channels[0]} channels and makes {channels[1]}; gray pictures (1 and 1) and "
            "color pictures (3 and 3) are allowed, and a learned variance is not."
        )
    if unet.get("class_embed_type") is not None:
        raise ValueError(
            f"{where}: class_embed_type is {plain(str(unet['class_embed_type']), 80)}; only classes by number "
            "(num_class_embeds) are allowed."
        )
    given = facts.unlabelled
    if given is not None and not (_whole(given) and 0 <= given < facts.embedded):
        raise ValueError(f"{where}: the class for no class is {plain(str(given), 80)}: correct it.")
    _check_schedule(scheduler, where)


def _check_schedule(scheduler: Mapping[str, Any], where: str) -> None:
    ddpm.prediction(scheduler)
    kind = str(scheduler.get("_class_name", "DDPMScheduler"))
    if "beta_schedule" not in scheduler and kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise ValueError(
            f"{where}: the scheduler {plain(kind, 80)} has no beta_schedule; one with betas, such as DDPMScheduler, is "
            "allowed."
        )
    steps = scheduler.get("num_train_timesteps", 1000)
    if not (_whole(steps) and 2 <= steps <= 100_000):
        raise ValueError(
            f"{where}: num_train_timesteps is {plain(str(steps), 80)}; 2 to 100000 are allowed."
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _state(folder: Path, facts: Ddpm) -> dict[str, torch.Tensor]:
    """The tensors of a pipeline, all that its network has and no others."""
    import safetensors.torch

    path = paths.inside(folder, f"unet/{WEIGHTS}")
    if not path.is_file():
        raise ValueError(
            f"'{plain(folder.name)}' has no unet/{WEIGHTS}. Only safetensors are read: save the pipeline again with "
            "save_pretrained(safe_serialization=True)."
        )
    header = read_header(path)
    with torch.device("meta"):
        wanted = {k: tuple(t.shape) for k, t in ddpm.make_network(facts).state_dict().items()}
    found = {_renamed(name): place.shape for name, place in header.tensors.items()}
    wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"unet/{WEIGHTS} of '{plain(folder.name)}' does not fit its config.json in {len(wrong)} tensors: "
            f"{plain(first, 200)} is {found.get(first, 'not there')}, and has to be {wanted.get(first, 'not there')}."
        )
    state = safetensors.torch.load_file(str(path), device="cpu")
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    start, _, end = name.rpartition(".")
    start, _, part = start.rpartition(".")
    if part in _RENAMED and ".attentions." in f".{start}.":
        return f"{start}.{_RENAMED[part]}.{end}"
    return name


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """The network's tensors with their patches, as they are stored; without patches to the bit."""
    made = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, entry in model.get_key_patches(_PREFIX).items():
            (weight, _), *patches = entry
            tensor = patched(entry, name).to(weight.dtype) if patches else weight.detach()
            made[name.removeprefix(_PREFIX)] = tensor.to("cpu").contiguous()
    return made


def _write(folder: Path, facts: Ddpm, weights: Mapping[str, torch.Tensor]) -> None:
    import safetensors.torch

    version = ddpm.diffusers().__version__
    kind = str(facts.scheduler.get("_class_name", "DDPMScheduler"))
    own = {"_diffusers_version": version}
    scheduler = {"_class_name": kind, **own, **facts.scheduler}
    index = {"_class_name": "DDPMPipeline", **own, "scheduler": ["diffusers", kind]}
    index["unet"] = ["diffusers", "UNet2DModel"]
    texts = {
        INDEX: index,
        "unet/config.json": {"_class_name": "UNet2DModel", **own, **facts.unet},
        "scheduler/scheduler_config.json": scheduler,
    }
    if facts.unlabelled is not None:
        texts[OWN] = {"unlabelled": facts.unlabelled}
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    for name, settings in texts.items():
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    path = folder / "unet" / WEIGHTS
    safetensors.torch.save_file(dict(weights), str(path), {"format": "pt"})
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _candidates(base: Path, name: str) -> Iterator[Path]:
    yield base / name
    counter = 2
    while True:
        yield base / f"{name}_{counter:05}"
        counter += 1


def _equal(one: Path, other: Path) -> bool:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    same = sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file()) == files
    return same and all(filecmp.cmp(one / f, other / f, shallow=False) for f in files)
