# SPDX-License-Identifier: Apache-2.0
"""Copy free photographs that scikit-image ships to assets/photos, as small JPEG files with captions."""

from __future__ import annotations

from pathlib import Path

from . import legs

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "photos"
PHOTOS = (
    (
        "astronaut",
        "astronaut.png",
        None,
        "a photo of an astronaut in an orange suit in front of a flag",
    ),
    ("coffee", "coffee.png", None, "a photo of a cup of coffee with a spoon on a wooden table"),
    ("rocket", "rocket.jpg", None, "a photo of a rocket launch at night"),
    ("galaxies", "hubble_deep_field.jpg", None, "a photo of many galaxies in deep space"),
    (
        "galaxies-tall",
        "hubble_deep_field.jpg",
        (200, 32, 760, 872),
        "a tall photo of galaxies in deep space",
    ),
)


def main(_: Path | None = None) -> None:
    """Write the photographs and their captions."""
    import skimage
    from PIL import Image

    source = Path(skimage.__file__).parent / "data"
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, file, box, caption in PHOTOS:
        with Image.open(source / file) as opened:
            picture = opened.convert("RGB").crop(box) if box else opened.convert("RGB")
        picture.save(FOLDER / f"{name}.jpg", quality=82, optimize=True)
        (FOLDER / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
        legs.log.info("wrote %s.jpg, %d x %d", name, *picture.size)
