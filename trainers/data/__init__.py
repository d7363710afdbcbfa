# SPDX-License-Identifier: Apache-2.0
"""Data for training: pictures and captions as values, buckets, and the order they are drawn in."""

from .buckets import Fitted, fit, random_crop, size_for, step_for
from .dataset import Dataset, Item, describe
from .folder import folder_fingerprint, read_folder
from .images import EXTENSIONS, ImageError, check_image, image_size, read_image, rgb_pixels

__all__ = [
    "EXTENSIONS",
    "Dataset",
    "Fitted",
    "ImageError",
    "Item",
    "check_image",
    "describe",
    "fit",
    "folder_fingerprint",
    "image_size",
    "random_crop",
    "read_folder",
    "read_image",
    "rgb_pixels",
    "size_for",
    "step_for",
]
