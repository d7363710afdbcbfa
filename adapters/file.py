# SPDX-License-Identifier: Apache-2.0
"""A trained adapter as a value: tensors by key and metadata, as a file holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """What travels on a GRAFT_ADAPTER wire.

    ``tensors`` has ComfyUI's generic names, ``diffusion_model.<module>.lora_up.weight`` and so on, where a training
    made it, and those of the file where it was loaded. ``metadata`` is text to text, as safetensors wants it; ``name``
    is a suggestion for the file. A training that begins with it may leave out what it does not train where
    ``leave_out`` says so.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = "graft"
    leave_out: bool = False
