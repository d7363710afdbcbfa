# SPDX-License-Identifier: Apache-2.0
"""The measurement of stratified noise levels: a closed form's variance, and a run on graft-mini in small."""

import math

import pytest
import torch

pytestmark = pytest.mark.comfy


def test_the_variance_falls_faster_than_with_more_pictures(comfy):
    """Independent levels have 1/n of the variance of one, stratified ones of a smooth loss about 1/n^3."""
    from graft.benchmarks.stratified import gaussian

    small, large = gaussian(2, steps=1000), gaussian(8, steps=1000)
    assert small < 0.4
    assert large == pytest.approx(small / 16, rel=0.3)


def test_loss_and_gradient_of_graft_mini(comfy, tmp_path, monkeypatch):
    import folder_paths

    from graft.benchmarks.stratified import mini
    from graft.host.model.mini import load_mini

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with torch.inference_mode():
        wires = load_mini()
    loss, gradient = mini(wires, 4, 3, "min-snr")
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in (loss, gradient))
    assert loss != 1
