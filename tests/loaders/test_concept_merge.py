# SPDX-License-Identifier: Apache-2.0
"""The closed form of Custom Diffusion's merge: its constraint, its optimality, and that order plays no part."""

import numpy as np
import pytest
import torch

from graft.loaders.concept_merge import directions, merge_concepts, residuals

OUT, WIDTH = 7, 24


def problem(captions=200, rows=(3, 4, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Encodings of texts lie near few directions.
    mix = draw(WIDTH, WIDTH) * torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    base = draw(OUT, WIDTH)
    tuned = [base + 0.1 * draw(OUT, WIDTH) for _ in rows]
    return base, tuned, [draw(n, WIDTH) @ mix for n in rows], draw(captions, WIDTH) @ mix


def test_every_concept_keeps_its_outputs():
    base, tuned, targets, captions = problem()
    found = directions(targets, captions, ridge=0.0)
    merged = merge_concepts(base, tuned, found)
    for own, target in zip(tuned, targets, strict=True):
        assert float((merged @ target.T - own @ target.T).abs().max()) < 1e-10
    assert max(residuals(merged, tuned, found)) < 1e-12
    assert min(residuals(base, tuned, found)) > 0.01


def test_it_is_the_nearest_by_constrained_least_squares():
    """numpy's: any solution of the constraint, and least squares in what the constraint leaves free."""
    base, tuned, targets, captions = problem()
    merged = merge_concepts(base, tuned, directions(targets, captions, ridge=0.0)).numpy()
    stacked, regular = torch.cat(targets).numpy(), captions.numpy()
    values = np.concatenate(
        [((own - base) @ c.T).numpy() for own, c in zip(tuned, targets, strict=True)], 1
    )
    _, _, rotation = np.linalg.svd(stacked)
    free = rotation[len(stacked) :].T  # what C sees nothing of
    for row in range(OUT):
        change = np.linalg.lstsq(stacked, values[row], rcond=None)[0]
        rest = np.linalg.lstsq(regular @ free, -regular @ change, rcond=None)[0]
        expected = base[row].numpy() + change + free @ rest
        np.testing.assert_allclose(merged[row], expected, rtol=1e-8, atol=1e-9)


def test_the_gradient_of_what_is_minimised_lies_in_the_constraint():
    """KKT: (W - W0) A is a combination of the rows of C; every feasible step costs."""
    base, tuned, targets, captions = problem(seed=3)
    change = merge_concepts(base, tuned, directions(targets, captions, ridge=0.0)) - base
    stacked = torch.cat(targets)
    gradient = change @ (captions.T @ captions)
    inside = torch.linalg.lstsq(stacked.T, gradient.T).solution
    assert float((stacked.T @ inside - gradient.T).abs().max()) < 1e-9
    cost = float((change @ captions.T).norm())
    _, _, rotation = torch.linalg.svd(stacked)
    generator = torch.Generator().manual_seed(9)
    for _ in range(5):
        step = torch.randn(OUT, WIDTH - len(stacked), generator=generator, dtype=torch.float64)
        other = change + 0.01 * step @ rotation[len(stacked) :]
        assert float((other @ captions.T).norm()) > cost


def test_the_order_of_concepts_plays_no_part():
    base, tuned, targets, captions = problem()
    one = merge_concepts(base, tuned, directions(targets, captions, ridge=0.0))
    two = merge_concepts(base, tuned[::-1], directions(targets[::-1], captions, ridge=0.0))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_one_concept_with_all_directions_is_its_own_weight():
    base, tuned, _, captions = problem()
    found = directions([torch.eye(WIDTH)], captions)
    torch.testing.assert_close(merge_concepts(base, tuned[:1], found), tuned[0])


def test_few_captions_need_the_ridge_and_equal_prompts_are_refused():
    base, tuned, targets, captions = problem(captions=5)
    with pytest.raises(ValueError, match="5 encodings of captions do not fix all 24 dimensions"):
        directions(targets, captions, ridge=0.0)
    found = directions(targets, captions)
    assert max(residuals(merge_concepts(base, tuned, found), tuned, found)) < 1e-6
    with pytest.raises(ValueError, match="encoded alike"):
        directions([targets[0], targets[0]], captions)
