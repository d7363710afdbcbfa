# SPDX-License-Identifier: Apache-2.0
"""Write handwritten digits, as scikit-learn ships them, into assets/concepts/digits: a folder for each class.

`python -m tools.make_digits`. 8 x 8 px, 16 steps of gray: the first of each class, in the order of the data set.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "concepts" / "digits"
OF_EACH = 50


def main() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for digit in range(10):
        folder = FOLDER / str(digit)
        folder.mkdir(parents=True)
        for number, image in enumerate(data.images[data.target == digit][:OF_EACH]):
            pixels = np.round(image * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02}.png", optimize=True)


if __name__ == "__main__":
    main()
