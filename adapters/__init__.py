# SPDX-License-Identifier: Apache-2.0
"""What is attached to a model: one file an adapter, and the block language."""

from ..registry import Registry
from .base import Layer, Network

NETWORKS: Registry[Network] = Registry("network")
NETWORKS.discover(__path__, __name__)

__all__ = ["NETWORKS", "Layer", "Network"]
