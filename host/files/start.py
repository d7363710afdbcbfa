# SPDX-License-Identifier: Apache-2.0
"""What a training begins with: a LoRA file of any dialect, fitted to the layers that are trained.

Nothing of the file is lost silently: what the training would not go on with is refused, or, where the user said so,
left out and told.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...adapters.bottleneck import is_bottleneck
from ...adapters.file import AdapterFile
from ...adapters.learned import Learned
from ...adapters.pair import Kept, Pair
from ...adapters.targets import kind, targets
from ...loaders import alphas, dialects, embedding_file, lora_file
from ...plain import some
from ..request import Request
from ..text import start_words
from . import result

_ROUNDING = 1e-9  # of sums in fp64
LOSSY = 0.999  # kept share of the energy below which a user is warned
_ROOT = "diffusion_model."


@dataclass(frozen=True, eq=False)
class Start:
    """What a run begins with.

    Attributes:
        name: Of the file.
        pairs: The changes by module, of trained layers only.
        digest: SHA-256 of what was in the file.
        notes: What the user should know.
        words: New words that are trained further.
    """

    name: str
    pairs: Mapping[str, Pair]
    digest: str
    notes: tuple[str, ...] = ()
    words: start_words.Words = field(default_factory=dict)

    def begin(self, learned: Learned) -> "Begun":
        """Put the changes into the attached layers, and words into theirs; those that have none stay fresh.

        Raises:
            ValueError: A layer or a word cannot begin so.
        """
        attached, kept = learned.model, dict[str, Kept | None]()
        for module, pair in self.pairs.items():
            try:
                kept[module] = attached.layers[module].begin(pair)
            except ValueError as error:
                raise ValueError(f"{module}: {error}") from error
        words = start_words.begin(learned.tokens, self.words)
        return Begun(self.name, kept, len(attached.layers), _numbers(self.pairs.values()), words)


@dataclass(frozen=True)
class Begun:
    """How a run began.

    Attributes:
        name: Of the file.
        kept: By module, how much of its change was kept; None where it was taken over as it is.
        layers: How many are trained.
        source: Rank and alpha of the file, as text.
        words: What became of its words.
    """

    name: str
    kept: Mapping[str, Kept | None]
    layers: int
    source: str
    words: str = ""

    @property
    def reduced(self) -> dict[str, Kept]:
        """The layers of another rank."""
        return {module: kept for module, kept in self.kept.items() if kept is not None}

    @property
    def share(self) -> float:
        """The kept share of all re-ranked layers' energy."""
        whole = sum(kept.whole for kept in self.reduced.values())
        return sum(kept.energy for kept in self.reduced.values()) / whole if whole else 1.0

    @property
    def text(self) -> str:
        """``begins with 'cat' (rank 8, alpha 4): 100 of 140 layers as they are, ...``."""
        same, fresh = len(self.kept) - len(self.reduced), self.layers - len(self.kept)
        said = []
        if same:
            said.append(f"{same} of {self.layers} layers as they are")
        if self.reduced:
            worst = min(self.reduced, key=lambda module: self.reduced[module].share)
            said.append(
                f"{len(self.reduced)} of {self.layers} re-ranked by SVD, {_percent(self.share)} of their energy kept "
                f"(least {_percent(self.reduced[worst].share)}, {worst})"
            )
        if fresh:
            said.append(f"{fresh} that are not in it fresh")
        if self.words:
            said.append(self.words)
        source = f" ({self.source})" if self.source else ""
        return f"begins with '{self.name}'{source}: {', '.join(said)}"

    @property
    def warnings(self) -> list[str]:
        """What is lost by the rank, and the rank that loses nothing."""
        if self.share >= LOSSY:
            return []
        rank = max(kept.rank for kept in self.reduced.values())
        return [
            f"Only {_percent(self.share)} of what '{self.name}' changes fits into this rank; rank {rank} loses nothing."
        ]


def prepare(request: Request) -> Start | None:
    """Read what a run shall begin with, and find out what of it is trained.

    Args:
        request: The run.

    Returns:
        None where it begins fresh.

    Raises:
        ValueError: The file does not fit the MODEL, or has parts that this training would lose.
    """
    file = request.start_from
    if file is None:
        return None
    _refuse_bottlenecks(file)
    try:
        found = read(request.model, file)
    except ValueError as error:
        raise ValueError(f"start_from, '{file.name}': {error}") from error
    root = request.model.model.diffusion_model
    plan = request.network.plan(request.network.targets(root))
    trained = set(plan)
    if found.pairs:
        _check_network(request, plan)
    untrained = [m for m, pair in found.pairs.items() if m not in trained and not pair.is_nothing]
    used = {module: pair for module, pair in found.pairs.items() if module in trained}
    lost = list(_lost(found, untrained, request, root))
    words, of_words = start_words.choose(file, request.tokens)
    if not used and found.pairs:
        lost = lost or [
            f"all of its layers are 0, and none is trained by '{request.network.blocks}'"
        ]
    if lost and not (file.leave_out and (used or words)):
        way = "" if file.leave_out else ", or switch on leave_out in Load LoRA To Train On"
        raise ValueError(f"start_from would lose a part of '{file.name}': {'; '.join(lost)}{way}.")
    notes = [*of_words, *(f"Left out of '{file.name}': {part}." for part in lost)]
    if found.text:
        notes.append(
            f"Left out of '{file.name}': {len(found.text)} layers of text encoders, which this node does not train "
            f"({some(found.text)})."
        )
    notes += _alpha_notes(file.name, used, plan)
    carried = _carried(request.model, used)
    if carried:
        notes.append(
            f"The MODEL has '{file.name}' in it already, in {carried} layers, so that it counts twice: connect the "
            "MODEL from before it was loaded."
        )
    return Start(file.name, used, digest(file), tuple(notes), words)


def read(model: Any, file: AdapterFile) -> dialects.Reading:
    """Find the changes that a file makes to a MODEL, and what has no place in it.

    Args:
        model: The host's ModelPatcher.
        file: The file, in any dialect.

    Raises:
        ValueError: Nothing fits, or the file is broken.
    """
    import comfy.lora_convert

    of_model = result.of_model(file.tensors)
    if file.tensors and not of_model:  # new words alone
        return dialects.Reading()
    try:
        tensors = comfy.lora_convert.convert_lora(of_model)
    except (KeyError, IndexError) as error:  # it knows some files by a few of their names
        raise ValueError(f"ComfyUI takes it for a kind of LoRA that lacks {error}.") from error
    found = dialects.read(tensors, file.metadata, places(model))
    if not found.pairs:
        lost = found.misshapen or found.homeless or found.other or found.text or list(file.tensors)
        raise ValueError(
            f"Nothing in it fits {type(model.model).__name__}, for example {some(lost)}. It was made for "
            "another kind of model, or is no LoRA of the diffusion model's layers."
        )
    return found


def places(model: Any) -> dict[str, dialects.Place]:
    """What names in files stand for, by the host's own map."""
    import comfy.lora

    root = model.model.diffusion_model
    shapes = {name: _shape(module) for name, module in root.named_modules() if kind(module)}
    made = {}
    for name, at in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        key, *rest = (at,) if isinstance(at, str) else at
        offset, function = (*rest, None, None)[:2]
        if key.startswith(_ROOT):
            module = key.removeprefix(_ROOT).removesuffix(".weight")
            made[name] = dialects.Place(module, shapes.get(module), offset, function)
    return made


def digest(file: AdapterFile) -> str:
    """SHA-256 of a file's tensors, and of the metadata and choices that a start depends on."""
    sha = hashlib.sha256(lora_file.data_hash(file.tensors).encode())
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in file.tensors.items())
    sha.update(repr((shapes, alphas.settings(file.metadata), file.leave_out)).encode())
    return sha.hexdigest()


def describe(file: AdapterFile, model: Any = None) -> str:
    """What is in a file, and how much of it fits a MODEL.

    Raises:
        ValueError: Nothing fits, or the file is broken.
    """
    if model is None:
        return f"'{file.name}': {len(file.tensors)} tensors; connect a model to see what fits."
    found = read(model, file)
    numbers = _numbers(found.pairs.values())
    said = [
        f"'{file.name}': {', '.join(filter(None, [f'{len(found.pairs)} layers fit', numbers]))}"
    ]
    said += (
        [f"new words: {', '.join(words)}"]
        if (words := embedding_file.bundled(file.tensors))
        else []
    )
    said += [
        f"{len(names)} {what} ({some(names)})"
        for what, names in (
            ("layers of text encoders are left out", found.text),
            ("layers have no place in this model", found.homeless),
            ("layers have another shape", found.misshapen),
            ("tensors are of another kind", found.other),
        )
        if names
    ]
    return "\n".join(said)


def _refuse_bottlenecks(file: AdapterFile) -> None:
    if any(map(is_bottleneck, file.tensors)):
        raise ValueError(
            f"start_from, '{file.name}', has bottleneck adapters, and no training can begin with these. Connect the "
            "state of the run that made them to state, or put them into the MODEL with Load Adapter and train on that."
        )


def _check_network(request: Request, trained: Iterable[str]) -> None:
    """Whether some of its layers are those of weights, as a LoRA's are."""
    root, names = request.model.model.diffusion_model, list(trained)
    if names and not any(kind(root.get_submodule(name)) for name in names):
        raise ValueError(
            f"{type(request.network).__name__} layers sit in blocks and cannot begin with a LoRA; choose the network "
            "'lora', or disconnect start_from."
        )


def _lost(
    found: dialects.Reading, untrained: list[str], request: Request, root: torch.nn.Module
) -> Iterator[str]:
    if untrained:
        wider = _wider(root, request.network.blocks, set(untrained))
        yield (
            f"{len(untrained)} of its {len(found.pairs)} layers are none that blocks '{request.network.blocks}' "
            f"trains ({some(untrained)}): set blocks to '{wider}'"
        )
    if found.homeless:
        yield f"the MODEL has no place for {len(found.homeless)} of its layers ({some(found.homeless)})"
    if found.misshapen:
        yield f"{len(found.misshapen)} of its layers have another shape ({some(found.misshapen)})"
    if found.other:
        yield (
            f"{len(found.other)} of its tensors are no LoRA of a linear or convolution layer, so that they cannot be "
            f"trained further ({some(found.other)})"
        )


def _alpha_notes(name: str, pairs: Mapping[str, Pair], plan: Mapping[str, Any]) -> list[str]:
    """Which alphas that were asked for are not those of the layers: of equal rank a layer keeps the file's."""
    unused: dict[float, int] = {}
    for module, pair in pairs.items():
        alpha, rank = (getattr(plan[module], field, 0) for field in ("alpha", "rank"))
        scaled = alpha * (rank**0.5 if getattr(plan[module], "rslora", False) else 1)
        if alpha and pair.rank == rank and pair.alpha != scaled:
            unused[alpha] = unused.get(alpha, 0) + 1
    return [
        f"alpha {alpha:g} is not used in {count} layers: they keep that of '{name}'."
        for alpha, count in unused.items()
    ]


def _wider(root: torch.nn.Module, blocks: str, missing: set[str]) -> str:
    """A block selection that covers ``missing``, too."""
    for preset in ("attention", "transformer"):
        try:
            if missing <= set(targets(root, preset)) and set(targets(root, blocks)) <= set(
                targets(root, preset)
            ):
                return preset
        except ValueError:  # this model has no such layers
            continue
    return "all"


def _carried(model: Any, pairs: Mapping[str, Pair]) -> int:
    """In how many layers a MODEL's patches are these very changes."""
    count = 0
    for module, pair in pairs.items():
        patches = model.patches.get(f"{_ROOT}{module}.weight", ())
        count += any(_same(patch[1], pair) for patch in patches)
    return count


def _same(patch: Any, pair: Pair) -> bool:
    weights = getattr(patch, "weights", None)
    if getattr(patch, "name", "") != "lora" or not isinstance(weights, tuple):
        return False
    up, down = (w.flatten(1).to("cpu", torch.float32) for w in weights[:2])
    return (
        up.shape == pair.up.shape
        and down.shape == pair.down.shape
        and bool(torch.equal(up, pair.up) and torch.equal(down, pair.down))
    )


def _shape(module: Any) -> tuple[int, int]:
    """Rows and columns of a module's flattened weight, by what it has: packed weights have other shapes."""
    if kind(module) == "linear":
        return int(module.out_features), int(module.in_features)
    columns = int(module.in_channels) // int(module.groups)
    for side in module.kernel_size:
        columns *= int(side)
    return int(module.out_channels), columns


def _numbers(pairs: Iterable[Pair]) -> str:
    """``rank 16, alpha 8``, or both limits where layers differ; nothing for none."""
    listed = list(pairs)
    if not listed:
        return ""
    ranks, alphas = {pair.rank for pair in listed}, {pair.alpha for pair in listed}
    rank = f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    alpha = f"{min(alphas):g}" if len(alphas) == 1 else f"{min(alphas):g} to {max(alphas):g}"
    return f"rank {rank}, alpha {alpha}"


def _percent(share: float) -> str:
    """With two decimals, rounded down: never 100 % where something is lost."""
    return f"{math.floor(1e4 * min(share + _ROUNDING, 1.0)) / 100:g} %"
