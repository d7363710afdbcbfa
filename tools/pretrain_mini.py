#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pretrain graft-mini from nothing: autoencoder, scorer, UNet with text encoders, export, evaluation.

Run a stage again to go on where it stopped: `python tools/pretrain_mini.py --stage unet --minutes 60`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLANS = {"autoencoder": 2200, "scorer": 1500, "unet": 15000}
MODULES = {stage: f"pretrain_{stage}" for stage in PLANS} | {
    "concepts": "make_concepts",
    "photos": "make_photos",
}


def _prepare(comfy_path: Path, device: str) -> None:
    pack = types.ModuleType("graft")
    pack.__path__ = [str(ROOT)]
    sys.modules.setdefault("graft", pack)
    sys.path.insert(0, str(comfy_path))
    argv, sys.argv = sys.argv, sys.argv[:1]
    from comfy.cli_args import args

    sys.argv = argv
    args.cpu = device == "cpu"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = ("autoencoder", "scorer", "unet", "export", "evaluate", "concepts", "photos", "all")
    parser.add_argument("--stage", choices=stages, default="all")
    parser.add_argument("--minutes", type=float, default=90.0, help="time limit of this leg")
    parser.add_argument(
        "--total-steps", type=int, default=0, help="planned steps of the stage; 0: its default"
    )
    parser.add_argument("--device", default="cuda" if _has_cuda() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share each step of the UNet stage"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=48,
        help="drawings per step of the UNet stage, over all workers",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--from-asset", action="store_true", help="go on from the shipped weights")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "pretrain")
    parser.add_argument(
        "--comfy", type=Path, default=os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI")
    )
    return parser.parse_args()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _worker(rank: int, options: argparse.Namespace, total: int, meeting: Path | None) -> None:
    _prepare(Path(options.comfy), options.device)
    import torch

    legs = importlib.import_module("graft.tools.mini.legs")
    stage = importlib.import_module("graft.tools.mini.pretrain_unet")
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    crew = legs.Crew(rank, options.workers, meeting)
    device = torch.device(options.device)
    plan = (
        options.folder,
        options.minutes,
        total,
        device,
        options.precision,
        options.compile,
        options.seed,
    )
    stage.train(*plan, options.batch, crew, options.from_asset)


def _run_crew(options: argparse.Namespace, total: int) -> None:
    import torch.multiprocessing

    if options.workers == 1:
        _worker(0, options, total, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        torch.multiprocessing.spawn(_worker, (options, total, meeting), nprocs=options.workers)


def _run(stage: str, options: argparse.Namespace) -> None:
    import torch

    device = torch.device(options.device)
    total = options.total_steps or PLANS.get(stage, 0)
    module = importlib.import_module(f"graft.tools.mini.{MODULES.get(stage, stage)}")
    if stage == "unet":
        _run_crew(options, total)
    elif stage in PLANS:
        module.train(options.folder, options.minutes, total, device, seed=options.seed)
    else:
        module.main(options.folder)


def main() -> None:
    """Parse the command line and run the chosen stage, or all of them in turn."""
    options = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    _prepare(Path(options.comfy), options.device)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    chain = ("autoencoder", "unet", "scorer", "export", "concepts", "evaluate")
    for stage in chain if options.stage == "all" else (options.stage,):
        _run(stage, options)


if __name__ == "__main__":
    main()
