# SPDX-License-Identifier: Apache-2.0
"""Data for training: pictures and captions as values, buckets, and the order they are drawn in."""

from .buckets import Fitted, fit, random_crop, size_for, step_for
from .caption_for_all import with_caption
from .captions import Captioning
from .dataset import Dataset
from .findings import duplicates
from .folder import class_names, read_folder
from .framing import Framing, View
from .images import EXTENSIONS, ImageError, check_image, image_size, read_image, rgb_pixels
from .item import Item
from .join import join
from .listing import folder_fingerprint
from .masks import with_masks
from .notes import notes
from .report import check_texts, describe, list_texts
from .sheet import contact_sheet
from .split import split

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
    "check_texts",
    "class_names",
    "contact_sheet",
    "describe",
    "duplicates",
    "fit",
    "folder_fingerprint",
    "image_size",
    "join",
    "list_texts",
    "notes",
    "random_crop",
    "read_folder",
    "read_image",
    "rgb_pixels",
    "size_for",
    "split",
    "step_for",
    "with_caption",
    "with_masks",
]
