# SPDX-License-Identifier: Apache-2.0
"""Bad input, as the user meets it: a message that names the thing, no step trained, nothing written."""

import os
import shutil
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy
FOLDER = "badly"


@pytest.fixture(scope="module")
def wires():
    from tests.host import tiny

    with torch.inference_mode():
        return {
            f"{kind}_{family}": getattr(tiny, kind)(family)
            for kind in ("model", "clip", "vae")
            for family in ("sdxl", "sd3", "sd15")
            if (kind, family) != ("clip", "sd3")
        }


@pytest.fixture
def folder(comfy):
    """A folder under input/ with one good picture and caption."""
    path = comfy / "input" / FOLDER
    path.mkdir()
    picture(path / "good.png")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The output folder, which must stay empty."""
    import folder_paths

    where = tmp_path / "output"
    monkeypatch.setattr(folder_paths, "output_directory", str(where))
    return where


@pytest.fixture
def trained(monkeypatch):
    """How often a training loop ran; it does not train."""
    from graft.trainers.loop import Loop

    calls = []
    real = Loop.run

    def run(loop):
        calls.append(loop)
        return real(loop)

    monkeypatch.setattr(Loop, "run", run)
    return calls


def picture(path, mode="RGB", size=(64, 64), **options):
    """A picture with different halves, and its caption."""
    pixels = np.full((size[1], size[0], 3), (200, 60, 20), dtype=np.uint8)
    pixels[:, size[0] // 2 :] = (20, 60, 200)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    path.with_suffix(".txt").write_text("a zork thing", encoding="utf-8")


def hidden(node):
    """The node with hidden inputs, as the host prepares it for a call."""
    held = SimpleNamespace(unique_id="7", prompt={}, extra_pnginfo={})
    return type(node.__name__, (node,), {"hidden": held})


def widgets(node, **changed):
    return {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")} | changed


def checked(node, **values):
    """What the host does with an answer of validate_inputs that is not True: it shows it."""
    answer = node.validate_inputs(**values)
    if answer is not True:
        raise ValueError(answer)


def load(name=FOLDER, **values):
    from graft.nodes.dataset import LoadImages

    checked(LoadImages, folder=name)
    given = widgets(LoadImages, folder=name, resolution=64) | values
    return LoadImages.execute(**given).args[0]


def train(wires, dataset=None, family="sdxl", **values):
    """Run the graph: load the folder and train one step."""
    from graft.nodes.recipes import TrainLora

    given = widgets(TrainLora, steps=1, rank=2, batch_size=1, preserve=0.0) | values
    checked(TrainLora, name=given["name"])
    sockets = {kind: wires[f"{kind}_{family}"] for kind in ("model", "clip", "vae")}
    sockets |= {key: given.pop(key) for key in sockets if key in given}
    with torch.inference_mode():
        dataset = dataset or load()
        return hidden(TrainLora).execute(**sockets, dataset=dataset, **given)


def files(where):
    return [path for path in where.rglob("*") if path.is_file()] if where.exists() else []


def refuses(wires, output, trained, message, **values):
    """Assert that the graph is refused with ``message``, and that nothing was done."""
    with pytest.raises((ValueError, OSError), match=message):
        train(wires, **values)
    assert not trained
    assert not files(output)


# Pictures and captions


def write_sixteen_bit(path):
    pixels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(pixels).save(path)
    path.with_suffix(".txt").write_text("a zork thing", encoding="utf-8")


def write_animation(path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    path.with_suffix(".txt").write_text("a zork thing", encoding="utf-8")


def write_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(path, size=(96, 64), exif=exif)


RIGHTLY_READ = {
    "cmyk": (lambda p: picture(p / "x.jpg", "CMYK"), "x.jpg", (64, 64)),
    "palette": (lambda p: picture(p / "x.png", "P"), "x.png", (64, 64)),
    "grey": (lambda p: picture(p / "x.png", "L"), "x.png", (64, 64)),
    "16 bit": (lambda p: write_sixteen_bit(p / "x.png"), "x.png", (64, 64)),
    "animated": (lambda p: write_animation(p / "x.gif"), "x.gif", (64, 64)),
    "rotated": (lambda p: write_rotated(p / "x.jpg"), "x.jpg", (64, 96)),
}


@pytest.mark.parametrize("case", RIGHTLY_READ)
def test_odd_pictures_are_read_rightly_and_train(wires, folder, output, case):
    write, name, size = RIGHTLY_READ[case]
    write(folder)
    dataset = load()
    (item,) = [item for item in dataset.items if item.name == name]
    pixels = item.read()
    assert (pixels.shape[1], pixels.shape[0]) == size
    assert 0 <= pixels.min() < pixels.max() <= 1 or case == "animated"
    if case == "cmyk":
        assert pixels[32, 8, 0] > pixels[32, 8, 2], "red is on the left"
    if case == "animated":
        assert any("x.gif" in warning for warning in dataset.warnings)
        assert pixels[0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.02)
    if case == "rotated":
        assert pixels[8, 32, 0] > pixels[88, 32, 0], "the left half is on top when upright"
    train(wires, dataset)
    assert [path.suffix for path in files(output) if "loras" in path.parts or "graft" in path.parts]


def write_bomb(path):
    """A PNG of 100,000 x 100,000 pixels by its header."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d))
        for kind, d in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def truncate(path):
    picture(path)
    path.write_bytes(path.read_bytes()[:80])


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def alone(path):
    """A picture without a caption."""
    picture(path)
    path.with_suffix(".txt").unlink()


def link_out(path, target):
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system lets nobody make links")


BAD_FOLDERS = {
    "empty": (empty, f"no images in '{FOLDER}'"),
    "only captions": (lambda p: (p / "good.png").unlink(), f"no images in '{FOLDER}'.*1 .txt"),
    "no picture at all": (lambda p: (p / "x.png").write_text("hello"), "x.png: "),
    "zero size": (lambda p: (p / "x.png").write_bytes(b""), "x.png: "),
    "truncated": (lambda p: truncate(p / "x.png"), "x.png: "),
    "too small": (lambda p: picture(p / "x.png", size=(3, 3)), "x.png: "),
    "bomb": (lambda p: write_bomb(p / "x.png"), "x.png: "),
    "no caption": (lambda p: alone(p / "x.png"), "1 of 2 images.*no caption: x.png"),
    "caption not UTF-8": (lambda p: (p / "good.txt").write_bytes(b"caf\xe9"), "good.txt.*UTF-8"),
    "link to outside": (lambda p: link_out(p / "x.png", "/etc/hostname"), "lead out.*x.png"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused_by_name(wires, folder, output, trained, case):
    write, message = BAD_FOLDERS[case]
    write(folder)
    if case != "no caption":
        for path in folder.glob("x.*"):
            path.with_suffix(".txt").write_text("a zork thing", encoding="utf-8")
    refuses(wires, output, trained, f"(?s){message}")


def test_captions_without_pictures_are_named_and_left_out(wires, folder, output):
    (folder / "lost.txt").write_text("a lost caption", encoding="utf-8")
    dataset = load()
    assert len(dataset) == 1
    assert any("lost.txt" in warning for warning in dataset.warnings)


def test_all_bad_pictures_are_named_at_once(wires, folder, output, trained):
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
        (folder / name).with_suffix(".txt").write_text("a zork thing", encoding="utf-8")
    refuses(wires, output, trained, "(?s)2 files.*a.png.*b.png")


# Folders and names


@pytest.mark.parametrize(
    "name", ["../input", f"{FOLDER}/../..", "/etc", "C:\\Windows", "~", "", "\\\\host\\share"]
)
def test_a_path_that_leaves_the_allowed_folders_is_refused(wires, folder, output, trained, name):
    from graft.nodes.dataset import LoadImages

    with pytest.raises(ValueError, match="(?i)folder"):
        checked(LoadImages, folder=name)
    with pytest.raises(ValueError, match="(?i)folder"):
        LoadImages.execute(**widgets(LoadImages, folder=name, resolution=64))


def test_a_link_that_leaves_the_allowed_folders_is_refused(comfy, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(outside / "secret.png")
    link = comfy / "input" / "linked"
    link_out(link, outside)
    try:
        with pytest.raises(ValueError, match="leads out"):
            load("linked")
    finally:
        link.unlink()


def test_a_folder_that_is_not_there_gets_a_hint(folder):
    with pytest.raises(ValueError, match=f"Did you mean {FOLDER}"):
        load("badyl")


@pytest.mark.parametrize("name", ["a/b", "a\\b", "../a", "..", "", "CON", "a\0b", "x" * 300])
def test_a_name_with_separators_is_refused(wires, folder, output, trained, name):
    from graft.nodes.recipes import TrainLora
    from graft.nodes.save import SaveLora

    refuses(wires, output, trained, "name of the LoRA", name=name)
    with pytest.raises(ValueError, match="name of the LoRA"):  # also where nothing validates
        sockets = {kind: wires[f"{kind}_sdxl"] for kind in ("model", "clip", "vae")}
        values = widgets(TrainLora, steps=1, batch_size=1, name=name)
        hidden(TrainLora).execute(**sockets, dataset=load(), **values)
    if name:
        assert SaveLora.validate_inputs(name) is not True
    assert not trained and not files(output)


def test_a_read_only_output_folder_is_refused_before_training(
    wires, folder, output, trained, monkeypatch
):
    from pathlib import Path

    real = Path.write_bytes

    def write_bytes(path, data):
        if output in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    refuses(wires, output, trained, "(?s)loras.*cannot be written.*Permission denied")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_write_permission_is_refused_before_training(
    wires, folder, output, trained
):
    (output / "loras").mkdir(parents=True)
    (output / "loras").chmod(0o500)
    try:
        refuses(wires, output, trained, "(?s)loras.*cannot be written")
    finally:
        (output / "loras").chmod(0o700)


def test_a_file_in_the_place_of_the_output_folder_is_named(wires, folder, output, trained):
    output.mkdir()
    (output / "loras").write_text("in the way")
    with pytest.raises(ValueError, match="loras.*a file is in its place"):
        train(wires)
    assert not trained and files(output) == [output / "loras"]


# Settings


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("setting", ["steps", "rank", "batch_size", "accumulate"])
def test_settings_of_nothing_are_refused(wires, folder, output, trained, setting, value):
    from graft.nodes.recipes import TrainLora

    refuses(wires, output, trained, f"{setting} is {value}", **{setting: value})
    (widget,) = [i for i in TrainLora.define_schema().inputs if i.id == setting]
    assert widget.min >= 1, "the browser and the host refuse it, too"


def test_fewer_pictures_than_the_batch_are_refused(wires, folder, output, trained):
    refuses(wires, output, trained, "batch_size is 2 but the dataset has 1 picture", batch_size=2)


def test_a_selection_that_matches_nothing_lists_near_names(wires, folder, output, trained):
    message = "(?s)'attn3' matches no layer.*attn2"
    refuses(wires, output, trained, message, blocks="attn3")
    refuses(wires, output, trained, "leaves no layer", blocks="attn2, -attn2")


# Wires


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_vae_of_another_family_is_refused(wires, folder, output, trained, family):
    message = "(?s)(VAE.*16.*4|16.*VAE)"
    refuses(wires, output, trained, message, family=family, vae=wires["vae_sd3"])


@pytest.mark.parametrize(("family", "other"), [("sdxl", "sd15"), ("sd15", "sdxl")])
def test_a_clip_of_another_family_is_refused(wires, folder, output, trained, family, other):
    with pytest.raises(ValueError, match="CLIP"):
        train(wires, family=family, clip=wires[f"clip_{other}"])
    assert not trained
    assert not [path for path in files(output) if path.suffix == ".safetensors"]


@pytest.mark.parametrize("kind", ["clip", "vae"])
def test_a_missing_wire_is_named(wires, folder, output, trained, kind):
    refuses(wires, output, trained, f"No {kind.upper()} is connected", **{kind: None})


def test_weights_that_cannot_be_trained_are_refused_by_layer(wires, folder, output, trained):
    from tests.host import tiny

    model = tiny.model("sdxl")
    layer = model.model.diffusion_model.input_blocks[0][0]
    quantised = torch.nn.Parameter(
        torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False
    )
    layer.weight = quantised
    message = "(?s)input_blocks.0.0.*quantised.*int8"
    refuses(wires, output, trained, message, model=model)


def test_hooks_and_compiled_models_are_refused_by_name(wires, folder, output, trained):
    model = wires["model_sdxl"].clone()
    model.object_patches["diffusion_model"] = SimpleNamespace(_orig_mod=1)
    refuses(wires, output, trained, "compiled.*before the compile node", model=model)
