# SPDX-License-Identifier: Apache-2.0
"""Encoded pictures and texts: what is known is not encoded again, what changed is, and what is lost comes back."""

import contextlib
import os

import pytest
import torch
from PIL import Image

from graft.host.data import autoencoder
from graft.host.data.picture_index import Digests
from graft.host.data.pictures import EncodedPictures
from graft.host.text.conditioning import encode_text
from graft.host.text.texts import EncodedTexts
from graft.trainers.data import Captioning, Dataset, Framing, Item
from graft.trainers.data.cache import Cache
from tests.host import tiny

pytestmark = pytest.mark.comfy


def pixels(seed=0, height=64, width=64):
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def files(tmp_path):
    """Four PNG files that were written a minute ago."""
    made = []
    for seed in range(4):
        path = tmp_path / "pictures" / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        write(path, seed)
        made.append(path)
    return made


def write(path, seed, age=60):
    Image.fromarray((pixels(seed) * 255).byte().numpy()).save(path)
    then = path.stat().st_mtime_ns - age * 10**9
    os.utime(path, ns=(then, then))


def dataset(files, **settings):
    items = tuple(Item((f"picture {i}",), path=str(path)) for i, path in enumerate(files))
    return Dataset(items, resolution=64, **settings)


class Bench:
    """A cache folder, and how much was encoded, read and said since it was asked last."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.said, self.reads = folder, [], []
        self.model, self.vae = tiny.model("sdxl"), tiny.kl_vae()
        real = Item.picture_digest
        monkeypatch.setattr(
            Item, "picture_digest", lambda item: self.reads.append(item.path) or real(item)
        )

    def encode(self, data, vae=None):
        """The dataset through a new cache object, as a new session has it; returns it and how many were encoded."""
        counts, digests = [], Digests(self.folder / "files")
        cache = Cache(self.folder / "latents", self.said.append)
        made = EncodedPictures(data, vae or self.vae, self.model, cache, digests)
        made.prepare(lambda total: lambda: counts.append(total))
        digests.save()
        assert made.encoded == len(counts)
        return made, len(counts)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path / "cache", monkeypatch)


def test_a_second_run_encodes_nothing_reads_no_picture_and_gives_the_same_bits(files, bench):
    first, count = bench.encode(dataset(files))
    assert count == 4 and len(bench.reads) == 4
    second, count = bench.encode(dataset(files))
    assert count == 0 and len(bench.reads) == 4
    for index, path in enumerate(files):
        view, again = first.view(index, 0.0), second.view(index, 0.0)
        found = autoencoder.posterior(
            bench.vae, bench.model, dataset(files).items[index].read()[None]
        )
        assert torch.equal(view.latents, found.mean[0]) and torch.equal(
            again.latents, found.mean[0]
        )
        assert torch.equal(view.spread, found.spread[0]) and torch.equal(
            again.spread, found.spread[0]
        )
        assert (again.size, again.original, again.crop) == ((64, 64), (64, 64), (0, 0))
        assert not again.latents.is_inference() and path.exists()
    assert not bench.said


def test_only_what_changed_is_encoded_again(files, bench):
    bench.encode(dataset(files))
    write(files[2], seed=9, age=30)
    assert bench.encode(dataset(files))[1] == 1  # the picture
    assert bench.encode(dataset(files[::-1]))[1] == 0  # their order is nothing to the latents
    moved = files[0].with_name("other name.png")
    files[0].rename(moved)
    assert bench.encode(dataset([moved, *files[1:]]))[1] == 0
    assert bench.encode(dataset(files[1:]), tiny.kl_vae(seed=5))[1] == 3  # the VAE
    assert bench.encode(dataset(files[1:], crops=2))[1] == 3  # one crop more of each
    flipped = dataset(files[1:], framing=Framing(flip=True))
    made, count = bench.encode(flipped)
    assert count == 3
    straight, mirrored = made.view(0, 0.0), made.view(0, 0.5)
    assert not torch.equal(straight.latents, mirrored.latents)
    assert bench.encode(flipped)[1] == 0
    bench.model = tiny.model("sdxl_edm")  # another scale of latents
    assert bench.encode(flipped)[1] == 3


def test_the_vae_is_known_by_its_weights(files, bench):
    bench.encode(dataset(files))
    same = tiny.kl_vae()
    assert bench.encode(dataset(files), same)[1] == 0
    with torch.inference_mode():
        same.first_stage_model.quant_conv.weight[0, 0] += 1
    assert bench.encode(dataset(files), same)[1] == 4


@pytest.mark.parametrize("harm", ["truncated", "shape"])
def test_a_broken_file_is_made_again_with_a_warning(files, bench, harm):
    from graft.trainers.data.tensor_files import Entry, TensorFiles

    whole, _ = bench.encode(dataset(files))
    key = whole._keys[1][0]
    path = TensorFiles(bench.folder / "latents").path(key)
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        facts = {"original": [64, 64], "crop": [0, 0]}
        TensorFiles(bench.folder / "latents").write(
            key, Entry({"mean": torch.zeros(4, 8, 7)}, facts)
        )
    again, count = bench.encode(dataset(files))
    assert count == 1 and len(bench.said) == 1 and key in bench.said[0]
    assert torch.equal(again.view(1, 0.0).latents, whole.view(1, 0.0).latents)
    assert bench.encode(dataset(files))[1] == 0 and len(bench.said) == 1


def test_what_is_lost_in_mid_run_is_encoded_under_guard(files, bench):
    made, _ = bench.encode(dataset(files))
    made, _ = bench.encode(dataset(files))  # nothing of it in memory
    for path in bench.folder.rglob("*.tensors"):
        path.unlink()
    guarded = []

    @contextlib.contextmanager
    def guard():
        guarded.append(1)
        yield

    made.guard = guard
    view = made.view(3, 0.0)
    assert guarded == [1]
    found = autoencoder.posterior(bench.vae, bench.model, dataset(files).items[3].read()[None])
    assert torch.equal(view.latents, found.mean[0])
    made.view(3, 0.0)
    assert guarded == [1]


def test_latents_that_are_not_finite_are_refused_and_not_kept(files, bench, monkeypatch):
    real = bench.vae.encode
    with monkeypatch.context() as patched:
        patched.setattr(bench.vae, "encode", lambda pixels: real(pixels) * float("nan"))
        with pytest.raises(ValueError, match="the VAE makes numbers of 0.png that are not finite"):
            bench.encode(dataset(files))
    assert bench.encode(dataset(files))[1] == 4


def test_every_latent_format_of_the_host_has_a_digest_of_its_numbers():
    import types

    import comfy.latent_formats

    from graft.host.runs import identity

    vae, digests = tiny.vae("sdxl"), {}

    def digest(form):
        return identity.vae_digest(vae, types.SimpleNamespace(latent_format=form))

    for name, form in vars(comfy.latent_formats).items():
        if isinstance(form, type) and issubclass(form, comfy.latent_formats.LatentFormat):
            digests[name] = digest(form())
            assert digest(form()) == digests[name]
    assert len(set(digests.values())) == len(digests) > 10
    scaled = comfy.latent_formats.SDXL()
    scaled.scale_factor = 0.5
    assert digest(scaled) != digests["SDXL"]


def test_masks_come_at_the_size_of_the_latents(bench):
    mask = torch.zeros(64, 64)
    mask[:32, :20] = 1.0  # two and a half places of eight pixels
    items = (Item(("a",), pixels=pixels(), mask=mask), Item(("b",), pixels=pixels(1)))
    for count in (2, 0):
        made, encoded = bench.encode(Dataset(items, resolution=64))
        assert encoded == count and made.view(1, 0.0).mask is None
        expected = torch.zeros(8, 8)
        expected[:4, :2], expected[:4, 2] = 1.0, 0.5
        assert torch.equal(made.view(0, 0.0).mask, expected[None])
    other = Item(("a",), pixels=pixels(), mask=mask.flip(0))
    assert bench.encode(Dataset((other, items[1]), resolution=64))[1] == 1


def test_texts_are_encoded_once_and_by_their_clip(tmp_path):
    clip = tiny.clip("sdxl")
    said = []

    def encode(texts, clip=clip):
        made, counts = EncodedTexts(clip, Cache(tmp_path, said.append)), []
        made.prepare(texts, lambda total: lambda: counts.append(total))
        assert made.encoded == len(counts)
        return made, len(counts)

    made, count = encode(["a", "b", "a", ""])
    assert count == 3 and set(made) == {"", "a", "b"}
    again, count = encode(["a", "b", "c"])
    assert count == 1
    for text in ("a", "c"):
        plain = encode_text(clip, text)
        assert torch.equal(again[text].text, plain.text) and list(again[text].extras) == list(
            plain.extras
        )
        for name, value in plain.extras.items():
            same = torch.equal if isinstance(value, torch.Tensor) else (lambda x, y: x == y)
            assert same(again[text].extras[name], value)
    assert encode(["a"], tiny.clip("sdxl", seed=8))[1] == 1
    layer = clip.clone()
    layer.clip_layer(-2)
    assert encode(["a"], layer)[1] == 1 and encode(["a"], clip)[1] == 0
    patched = clip.clone()
    key = next(k for k in clip.patcher.model.state_dict() if k.endswith("q_proj.weight"))
    patched.add_patches(
        {key: ("diff", (torch.ones_like(clip.patcher.model.state_dict()[key]),))}, 0.5
    )
    assert encode(["a"], patched)[1] == 1
    with pytest.raises(KeyError):
        made["never prepared"]
    for path in tmp_path.rglob("*.tensors"):
        path.write_bytes(b"broken")
    assert encode(["a", "b"])[1] == 2 and len(said) == 2


def test_brackets_are_weights_only_where_captions_say_so(bench, tmp_path):
    """Both ways of one caption have their own encodings, and steps draw from the right ones."""
    from graft.host.text.texts import prompts

    clip = tiny.clip("sdxl")
    items = (Item(("saber (fate), red", "plain"), pixels=pixels()),)
    both = [
        Dataset(items, resolution=64, captioning=Captioning(weighted=weighted, dropout=0.2))
        for weighted in (False, True)
    ]
    made = EncodedTexts(clip, Cache(tmp_path))
    made.prepare([text for one in both for text in prompts(one, 0)], lambda total: lambda: None)
    assert set(made) == {r"saber \(fate\), red", "saber (fate), red", "plain", ""}
    assert made.encoded == 4 and len(list(tmp_path.rglob("*.tensors"))) == 4
    drawn = [[bench.encode(one)[0].text(0, u) for u in (0.1, 0.3, 0.9)] for one in both]
    assert drawn == [["", r"saber \(fate\), red", "plain"], ["", "saber (fate), red", "plain"]]
    flat = clip.tokenize("saber (fate), red", disable_weights=True)
    with torch.inference_mode():
        wanted = clip.encode_from_tokens_scheduled(flat)[0][0]
    assert torch.equal(made[r"saber \(fate\), red"].text, wanted)
    assert not torch.equal(made["saber (fate), red"].text, wanted)


def test_a_text_that_names_an_embedding_file_is_encoded_by_every_run(tmp_path):
    clip = tiny.clip("sdxl")
    for _ in range(2):  # the file behind the name may have changed
        made = EncodedTexts(clip, Cache(tmp_path))
        made.prepare(["an embedding:thing"], lambda total: lambda: None)
        assert made.encoded == 1 and made["an embedding:thing"].text.ndim == 3
    assert not list(tmp_path.rglob("*.tensors"))


def test_a_file_is_decoded_once_and_for_all(files, tmp_path, monkeypatch):
    from graft.host.data import picture_index
    from graft.host.data.picture_index import Checks
    from graft.trainers.data import ImageError, check_image

    decoded = []
    monkeypatch.setattr(
        picture_index, "check_image", lambda path: decoded.append(path) or check_image(path)
    )
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for _ in range(2):
        checks = Checks(tmp_path / "checks")
        assert [checks(path) for path in files] == [check_image(path) for path in files]
        with pytest.raises(ImageError):
            checks(tmp_path / "bad.png")
        checks.save()
    assert len(decoded) == 4 + 2
    write(files[0], seed=7, age=30)
    assert Checks(tmp_path / "checks")(files[0]) and len(decoded) == 7
    for index in (tmp_path / "checks").iterdir():
        index.write_text(index.read_text().replace("width", "breadth"))
    assert Checks(tmp_path / "checks")(files[1]) == check_image(files[1])


def test_a_picture_that_vanished_is_named_with_what_to_do(files, tmp_path):
    """Wherever it is missed first, the error is one that the user can act on."""
    from graft.trainers.data import ImageError, describe, split

    mask = tmp_path / "m.png"
    write(mask, seed=9)
    items = tuple(Item(("a",), path=str(path)) for path in files)
    dataset = Dataset(items, resolution=64)
    masked = Dataset((Item(("a",), pixels=pixels(), mask=str(mask)),), resolution=64)
    mask.unlink()
    files[2].unlink()
    digests = Digests(tmp_path / "index")
    for look in (
        lambda: dataset.digest(digests.picture, digests.mask),
        dataset.digest,
        lambda: describe(dataset),
        lambda: split(dataset, 0.5),
        lambda: dataset.view(2, 0),
    ):
        with pytest.raises(ImageError, match=f"{files[2].name}: does not exist any more.*put it "):
            look()
    with pytest.raises(ImageError, match="m.png: does not exist any more"):
        masked.digest(digests.picture, digests.mask)
