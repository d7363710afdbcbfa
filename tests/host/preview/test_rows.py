# SPDX-License-Identifier: Apache-2.0
"""The sheet of training pictures: what its cells hold, and where they are."""

from types import SimpleNamespace

import pytest
import torch

from graft.trainers.data.batch import Batch
from tests.trainers.toy import Toy

pytestmark = pytest.mark.comfy


class Vae:
    """Latents are pictures: three of the channels, moved to 0..1."""

    def decode(self, latent):
        return (latent[:, :3] / 8 + 0.5).movedim(1, -1)


class Data:
    def __init__(self, count=6, size=(4, 6)):
        generator = torch.Generator().manual_seed(0)
        self.buckets = [size] * count
        self.clean = torch.randn(count, 4, *size, generator=generator)

    def batches(self, items, draws):
        yield Batch(self.clean[list(items)], torch.tensor([float(i) for i in items]))


class Knowing(Toy):
    """Knows the picture of every condition by heart."""

    def __init__(self, family, data):
        super().__init__(family)
        self.data = data

    def __call__(self, x, sigma, cond):
        return self.data.clean[cond.long()]


@pytest.fixture
def made(monkeypatch):
    import contextlib

    from graft.host.preview import rows as picture_rows

    monkeypatch.setattr(picture_rows, "untouched", lambda trainee: contextlib.nullcontext())

    def make(family, data=None, seed=3):
        data = data or Data()
        model = SimpleNamespace(process_latent_out=lambda latent: latent)
        trainee = SimpleNamespace(denoiser=Knowing(family, data), model=model)
        return data, picture_rows.rows(trainee, data, Vae(), seed)

    return make


@pytest.mark.parametrize("family", ["eps", "flow"])
def test_cells_are_the_input_its_noised_and_its_denoised_latents(made, family):
    """A denoiser that knows the picture shows it at every level; x comes at the variance of the clean latent."""
    from graft.host.preview import rows as picture_rows

    data, rows = made(family)
    assert len(rows) == picture_rows.PICTURES
    sigmas = picture_rows.levels(Toy(family))
    assert list(sigmas) == sorted(sigmas)
    for index, row in enumerate(rows):
        clean = (data.clean[index, :3] / 8 + 0.5).movedim(0, -1).clamp(0, 1)
        assert torch.equal(row.clean, clean)
        assert all(torch.equal(one, clean) for one in row.denoised)
    values = torch.stack([row.noised for row in rows]) * 8 - 4
    assert values.std() == pytest.approx(1.0, abs=0.1)
    near, far = (
        float(torch.corrcoef(torch.stack([values[:, at].flatten(), clean_of(rows)]))[0, 1])
        for at in (0, -1)
    )
    s = float(sigmas[0])
    signal, spread = (1 - s, s) if family == "flow" else (1.0, s)
    assert near == pytest.approx(signal / (signal**2 + spread**2) ** 0.5, abs=0.05)
    assert far < near - 0.3


def clean_of(rows):
    return torch.stack([row.clean for row in rows]).flatten() * 8 - 4


def test_the_draws_are_the_runs_and_nobody_elses(made):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    _, one = made("eps")
    _, two = made("eps")
    _, other = made("eps", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0].noised, two[0].noised)
    assert not torch.equal(one[0].noised, other[0].noised)
    assert not torch.equal(one[0].noised[0] - one[0].clean, one[1].noised[0] - one[1].clean)


def colour(value, size=(64, 96)):
    return torch.tensor(value).expand(*size, 3)


def test_every_cell_is_in_its_line_and_column():
    from graft.host.preview import rows as picture_rows
    from graft.host.preview.rows import GAP_PX, LEVELS, Rows

    red, blue, green, black = (
        colour([r, g, b]) for r, g, b in ((1.0, 0, 0), (0, 0, 1.0), (0, 1.0, 0), (0.0, 0.0, 0.0))
    )
    one = Rows(red, blue.expand(LEVELS, -1, -1, -1), green.expand(LEVELS, -1, -1, -1))
    picture = picture_rows.sheet([one, one], torch.linspace(0.1, 9, LEVELS), black[None])[0]
    width, height = 96 + GAP_PX, 64 + GAP_PX
    left = picture.shape[1] - (LEVELS + 1) * width
    for value, column, line, extra in (
        ([1, 0, 0], 0, 0, 0), ([0, 0, 1], 1, 0, 0), ([0, 0, 1], LEVELS, 2, 0),
        ([0, 1, 0], 1, 1, 0), ([0, 1, 0], LEVELS, 3, 0), ([1, 1, 1], 0, 1, 0), ([0, 0, 0], 0, 4, 1),
    ):  # fmt: skip
        head = 19  # a fifth of a cell's width
        x, y = left + column * width + 48, head * (1 + extra) + line * height + 32
        assert picture[y, x].tolist() == value, (column, line)
    assert picture.shape[0] == 19 * 2 + 5 * height + GAP_PX


def test_pictures_of_other_shapes_are_fitted_and_many_samples_wrap():
    from graft.host.preview import rows as picture_rows
    from graft.host.preview.rows import LEVELS, Rows

    tall = colour([0.5, 0.5, 0.5], (900, 300))
    wide = colour([0.5, 0.5, 0.5], (32, 64))
    made = [
        Rows(one, one.expand(LEVELS, -1, -1, -1), one.expand(LEVELS, -1, -1, -1))
        for one in (tall, wide)
    ]
    picture = picture_rows.sheet(made, torch.ones(LEVELS), wide.expand(9, -1, -1, -1))
    assert picture.shape[1] > 6 * 256 and picture.dtype == torch.float32
    assert not picture.is_inference()
