# SPDX-License-Identifier: Apache-2.0
"""Several trainings of Custom Diffusion in one model: texts are encoded by the CLIP, the rest is in closed form."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.file import AdapterFile
from ...adapters.targets import kind
from ...adapters.tokens import BUNDLE
from ...loaders import embedding_file
from ...loaders.concept_merge import Directions, directions, merge_concepts, residuals
from .. import graph
from ..files import result
from ..files.patched_weights import weight_of
from ..runs import identity
from ..runs.stopping import interrupt
from ..text import conditioning
from ..text.words import with_words

_ROOT, _DIFF = "diffusion_model.", ".diff"
_KINDS = ("photo", "painting", "drawing", "close-up", "picture")
_THINGS = (
    "man",
    "woman",
    "child",
    "dog",
    "cat",
    "bird",
    "horse",
    "house",
    "tree",
    "flower",
    "car",
    "chair",
    "cup",
    "mountain",
    "street",
    "table",
    "boat",
    "shoe",
    "book",
    "city",
)
_PLACES = ("in the snow", "on a beach")


@dataclass(frozen=True, eq=False)
class Merged:
    """What came of a merge."""

    model: Any
    clip: Any
    adapter: AdapterFile
    report: str


def usual_captions() -> list[str]:
    """Two hundred captions of all sorts of things."""
    every = itertools.product(_KINDS, _THINGS, _PLACES)
    return [f"a {kind_of} of a {thing} {place}" for kind_of, thing, place in every]


def merge(
    model: Any,
    clip: Any,
    adapters: Sequence[AdapterFile],
    prompts: Sequence[str] = (),
    captions: Sequence[str] = (),
    name: str = "merged",
    node_id: str | None = None,
) -> Merged:
    """Merge concepts into one MODEL and CLIP.

    Args:
        model: The MODEL that all of them were trained on.
        clip: Its CLIP.
        adapters: What the trainings made.
        prompts: What each concept is called in; a photo of its words where there are none.
        captions: Texts whose keys and values are to stay as they are; the usual ones where there are none.
        name: Of the merged adapter.
        node_id: Where progress is shown.

    Raises:
        ValueError: They cannot be merged; says why.
    """
    words = [sorted(embedding_file.bundled(adapter.tensors)) for adapter in adapters]
    texts = _prompts(adapters, words, prompts)
    bundle = _bundle(adapters)
    changes = [_changes(adapter) for adapter in adapters]
    layers = list(dict.fromkeys(layer for change in changes for layer in change))
    graph.show_text(node_id, "encoding texts")
    with torch.inference_mode(False), torch.no_grad():
        knowing = with_words(clip, bundle)
        targets = [_encoded(knowing, text, of_words=True) for text in texts]
        regular = torch.cat([_encoded(clip, text) for text in captions or usual_captions()])
        _check_layers(model, layers, regular.shape[1])
        found = directions(targets, regular)
        merged, before, after, drift = _all(model, layers, changes, found, regular)
        digest = identity.model_digest(model)
        trigger = ", ".join(itertools.chain.from_iterable(words))
        facts = {"merged": [adapter.name for adapter in adapters], "model": digest}
        metadata = result.lora_metadata(merged, model, title=name, trigger=trigger, facts=facts)
        adapter = AdapterFile(merged | bundle, metadata, name)
        patched, report = result.apply(model, merged)
    lines = [
        f"{len(adapters)} concepts in {len(layers)} keys and values: {report.text}",
        *_distances(texts, before, after),
        f"captions: keys and values moved by {drift:.2%}",
        *_others(adapters, digest),
    ]
    return Merged(patched, knowing, adapter, "\n".join(lines))


def _prompts(
    adapters: Sequence[AdapterFile], words: Sequence[Sequence[str]], prompts: Sequence[str]
) -> list[str]:
    if prompts and len(prompts) != len(adapters):
        raise ValueError(
            f"There are {len(prompts)} prompts for {len(adapters)} adapters: write one a line, in their order, or none."
        )
    for adapter, own in zip(adapters, words, strict=True):
        if not prompts and not own:
            raise ValueError(
                f"'{adapter.name}' has no new word, so that nothing says what it is called: write prompts, one a line."
            )
    return list(prompts) or [f"a photo of {' '.join(own)}" for own in words]


def _bundle(adapters: Sequence[AdapterFile]) -> dict[str, torch.Tensor]:
    """The words of all of them."""
    found: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        own = {k: t.detach() for k, t in adapter.tensors.items() if k.startswith(BUNDLE)}
        twice = sorted(own.keys() & found.keys())
        if twice:
            word = twice[0].removeprefix(BUNDLE).partition(".")[0]
            raise ValueError(
                f"Two of the adapters have the word {word}: train one of them with another token."
            )
        found |= own
    return found


def _changes(adapter: AdapterFile) -> dict[str, torch.Tensor]:
    """What an adapter changes, by layer."""
    others = [
        key
        for key, tensor in adapter.tensors.items()
        if not key.startswith(BUNDLE)
        and not (key.startswith(_ROOT) and key.endswith(_DIFF) and tensor.ndim == 2)
    ]
    found = {
        key.removeprefix(_ROOT).removesuffix(_DIFF): tensor.detach()
        for key, tensor in adapter.tensors.items()
        if key not in others and not key.startswith(BUNDLE)
    }
    if others or not found:
        raise ValueError(
            f"'{adapter.name}' is no training of Custom Diffusion: it has {', '.join(others[:2]) or 'no weights'}, and "
            "only changes of keys and values can be merged. Train it with Train Custom Diffusion."
        )
    return found


def _check_layers(model: Any, layers: Sequence[str], width: int) -> None:
    root = model.model.diffusion_model
    known = dict(root.named_modules())
    for layer in layers:
        module = known.get(layer)
        if module is None or kind(module) != "linear":
            raise ValueError(f"The MODEL has no linear layer {layer}: connect the one trained on.")
        if module.in_features != width:
            raise ValueError(
                f"Layer {layer} reads {module.in_features} numbers and texts are encoded as {width}, so that it does "
                "not read the text itself; only keys and values of cross-attention can be merged."
            )


def _encoded(clip: Any, text: str, of_words: bool = False) -> torch.Tensor:
    """The encodings of a text's tokens ``[n, d]`` fp64, from the first mark to the last, without padding.

    Args:
        clip: The CLIP.
        text: A prompt.
        of_words: From the first new word on, as what is before it knows nothing of it and other prompts have it, too;
            without the first mark where there is no new word.
    """
    encoded = conditioning.encode_text(clip, text).text[0].double()
    first, last = len(encoded), 0
    empty = clip.tokenize("")
    for name, chunks in clip.tokenize(text).items():
        tokens, end = [token for token, *_ in chunks[0]], empty[name][0][1][0]
        marks = (at for at, token in enumerate(tokens) if at and _is(token, end))
        last = max(last, next(marks, len(tokens) - 1))
        new = (at for at, token in enumerate(tokens) if not isinstance(token, int))
        first = min(first, next(new, 1))
    return encoded[first if of_words else 0 : last + 1]


def _is(token: Any, end: Any) -> bool:
    return isinstance(token, int) and token == end


def _all(
    model: Any,
    layers: Sequence[str],
    changes: Sequence[Mapping[str, torch.Tensor]],
    found: Directions,
    regular: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], list[float], list[float], float]:
    """The merged change of every layer; how far the worst layer is from each concept, before and now; the drift."""
    merged, before, after = {}, [0.0] * len(changes), [0.0] * len(changes)
    moved = size = 0.0
    for layer in layers:
        interrupt()
        base = weight_of(model, f"{_ROOT}{layer}.weight")
        tuned = [base + c[layer].double().cpu() if layer in c else base for c in changes]
        whole = merge_concepts(base, tuned, found)
        change = (whole - base).float()
        merged[f"{_ROOT}{layer}{_DIFF}"] = change
        as_kept = base + change.double()
        before = [max(p) for p in zip(before, residuals(base, tuned, found), strict=True)]
        after = [max(p) for p in zip(after, residuals(as_kept, tuned, found), strict=True)]
        moved += float((change.double() @ regular.T).square().sum())
        size += float((base @ regular.T).square().sum())
    return merged, before, after, math.sqrt(moved / size) if size else 0.0


def _distances(texts: Sequence[str], before: Sequence[float], after: Sequence[float]) -> list[str]:
    """A line for each concept."""
    return [
        f"'{text}': off by {was:.2%} before, {now:.1e} now"
        for text, was, now in zip(texts, before, after, strict=True)
    ]


def _others(adapters: Sequence[AdapterFile], digest: str) -> list[str]:
    """A line for each adapter that was trained on another model."""
    return [
        f"'{adapter.name}' was trained on another MODEL than this one: its concept may look different"
        for adapter in adapters
        if adapter.metadata.get("graft.model", digest) != digest
    ]
