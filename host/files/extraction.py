# SPDX-License-Identifier: Apache-2.0
"""The difference of two MODELs as a LoRA: the nearest one of a rank, weight by weight, exact where the rank allows.

The nearest in the Frobenius norm is the truncated SVD of the difference (Eckart and Young 1936).
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from ...adapters.file import AdapterFile
from ...adapters.learned import MODEL
from ...adapters.pair import Kept
from ...loaders.roles import ALPHA
from ...loaders.writing import changes
from ...loaders.writing.changes import Wish
from .. import graph
from ..model.limits import refuse_limited
from ..runs.stopping import interrupt
from . import result
from .patched_weights import PatchedWeights

_LISTED = 3


@dataclass
class _Found:
    """What was extracted, and what of the difference is in it."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    ranks: set[int] = field(default_factory=set)
    least: tuple[float, str] = (1.0, "")
    left: list[str] = field(default_factory=list)


def extract(
    base: Any,
    tuned: Any,
    wish: Wish,
    rest: bool = True,
    name: str = "extracted",
    node_id: str | None = None,
) -> tuple[AdapterFile, str]:
    """Find the LoRA that makes one MODEL of another; neither is changed.

    Args:
        base: The host's ModelPatcher that the LoRA is for; its patches count.
        tuned: The one that it should become, of the same kind; likewise.
        wish: The rank of every layer, or the share of |dW|^2 to keep.
        rest: Whether biases, norms and other vectors go in as full differences.
        name: Of the adapter.
        node_id: Where progress is shown.

    Returns:
        The adapter, and how much of the difference it is.

    Raises:
        ValueError: The MODELs are of another kind, or the same.
    """
    before, after = PatchedWeights(base), PatchedWeights(tuned)
    _check(base, tuned, before, after)
    found, names = _Found(), before.names
    with torch.inference_mode(False), torch.no_grad():
        for at, key in enumerate(names):
            interrupt()
            if at % 20 == 0:
                graph.show_text(node_id, f"{at} of {len(names)} weights")
            if not before.is_same(key, after):
                _take(found, key, after.get(key) - before.get(key), wish, rest)
    if not found.tensors:
        more = (
            f" They differ in {', '.join(found.left[:_LISTED])} only: switch rest on."
            if found.left
            else ""
        )
        raise ValueError(
            "The two MODELs have the same weights: there is nothing to extract. Bottleneck adapters and hooks are no "
            f"part of the weights.{more}"
        )
    energy, whole = sum(k.energy for k in found.kept), sum(k.whole for k in found.kept)
    facts = {"extracted_share": f"{energy / whole if whole else 1.0:.6f}"}
    metadata = result.lora_metadata(found.tensors, base, title=name, facts=facts)
    adapter = AdapterFile(found.tensors, metadata, name)
    return adapter, _report(found, energy, whole, result.apply(base, found.tensors)[1].text)


def _check(base: Any, tuned: Any, before: PatchedWeights, after: PatchedWeights) -> None:
    for model in (base, tuned):
        refuse_limited(model, "which is none of its weights")
    kinds = [type(one.model.model_config).__name__ for one in (base, tuned)]
    others = sorted(set(before.names) ^ set(after.names))
    if others:
        raise ValueError(
            f"base is {kinds[0]} and tuned is {kinds[1]}: {len(others)} weights are in one of them only, for example "
            f"{', '.join(others[:_LISTED])}. Connect two MODELs of the same kind."
        )
    for key in before.names:
        if before.shape(key) != after.shape(key):
            raise ValueError(
                f"base is {kinds[0]} and tuned is {kinds[1]}: {key} is {list(before.shape(key))} in base and "
                f"{list(after.shape(key))} in tuned. Connect two MODELs of the same kind."
            )


def _take(found: _Found, key: str, change: torch.Tensor, wish: Wish, rest: bool) -> None:
    if not bool(torch.isfinite(change).all()):
        raise ValueError(
            f"{key} has values that are no finite numbers (NaN or infinity) in one of the MODELs."
        )
    if not bool(change.any()):
        return
    is_weight = key.endswith(".weight")
    layer = key.removesuffix(".weight") if is_weight else key.removesuffix(".bias")
    if is_weight and change.ndim > 1:
        made, kept = _low_rank(change, wish)
        found.tensors |= {f"{layer}.{role}": tensor for role, tensor in made.items()}
        found.kept.append(kept)
        found.ranks.add(int(made[ALPHA]))
        found.least = min(found.least, (kept.share, layer.removeprefix(MODEL)))
    elif rest and (is_weight or key.endswith(".bias")):
        found.tensors[f"{layer}.{'diff' if is_weight else 'diff_b'}"] = change.cpu()
    else:
        found.left.append(key)


def _low_rank(change: torch.Tensor, wish: Wish) -> tuple[dict[str, torch.Tensor], Kept]:
    """The nearest LoRA of a full difference ``[out, in, *kernel]``, by its SVD where it lies."""
    u, s, vh = torch.linalg.svd(change.flatten(1), full_matrices=False)
    made, kept = changes.from_singular(u, s, vh, wish, tuple(change.shape[2:]))
    return {role: tensor.cpu() for role, tensor in made.items()}, kept


def _report(found: _Found, energy: float, whole: float, applied: str) -> str:
    said = []
    if found.kept:
        ranks = found.ranks
        span = f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
        share = energy / whole if whole else 1.0
        said.append(
            f"{len(found.kept)} layers of rank {span} keep {share:.4%} of |dW|^2, the least "
            f"{found.least[0]:.4%}{f' in {found.least[1]}' if found.least[1] else ''}"
        )
        wanted = sorted(kept.rank for kept in found.kept)
        said.append(
            f"to keep all, ranks up to {wanted[-1]} are needed, {wanted[len(wanted) // 2]} in the middle one"
        )
    full = sum(key.endswith((".diff", ".diff_b")) for key in found.tensors)
    said += [f"{full} biases, norms and vectors in full"] if full else []
    said += (
        [f"{len(found.left)} others differ and are left out: {', '.join(found.left[:_LISTED])}"]
        if found.left
        else []
    )
    return "\n".join([*said, f"On base: {applied}"])
