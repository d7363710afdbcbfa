# SPDX-License-Identifier: Apache-2.0
"""Data for training: pictures and captions as values, buckets, and the order they are drawn in."""

from .buckets import Fitted, fit, random_crop, size_for, step_for
from .captions import Captioning
from .dataset import Dataset
from .folder import folder_fingerprint, read_folder
from .framing import Framing, View
from .images import EXTENSIONS, ImageError, check_image, image_size, read_image, rgb_pixels
from .item import Item
from .join import join
from .report import describe

__all__ = [
    "EXTENSIONS",
    "Captioning",
    "Dataset",
    "Fitted",
    "Framing",
    "ImageError",
    "Item",
    "View",
    "check_image",
    "describe",
    "fit",
    "folder_fingerprint",
    "image_size",
    "join",
    "random_crop",
    "read_folder",
    "read_image",
    "rgb_pixels",
    "size_for",
    "step_for",
]
