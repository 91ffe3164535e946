#!/usr/bin/env python3
"""Checks the parts of this project that need no SGLang on a machine with one GPU, each in a separate process.

    python scripts/gpu_check/parts.py                        # on the GPU, at the 30B model's sizes
    python scripts/gpu_check/parts.py --device cpu --small   # for a trial

Prints one line of JSON for each check. Weights are random. The script needs torch, transformers, msgspec and pyzmq;
`bare.py` provides msgspec and pyzmq if they are not installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_check.checks import SECONDS  # noqa: E402
from gpu_check.running.children import Start, findings, forked, spawned  # noqa: E402
from gpu_check.running.finding import Finding, Log, report  # noqa: E402

DEADLINE = 240
PRELOADED = (
    "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe",
    "gpu_check.running.random_parts",
    *(f"stages.encoders.{name}" for name in ("image_encoder", "audio_encoder")),
    *(f"stages.{name}" for name in ("code_predictor", "code2wav", "checkpoint.memory_needs")),
)
# A check stops measuring this number of seconds before the time at which it is killed.
_RESERVE = 5


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if options.child:
        check(options.child, options.device, options.seconds, small=options.small)
        return 0
    log = Log(options.out)
    until = time.monotonic() + options.seconds
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if options.seconds > _RESERVE:
            preload()
    for name in options.only or SECONDS:
        seconds = min(SECONDS[name], until - time.monotonic())
        if seconds <= _RESERVE:
            log.add(Finding(name, False, {"problem": "no time was left for it"}))
            continue
        for finding in findings(name, child(name, options, seconds - _RESERVE), seconds):
            log.add(finding)
    return log.status


def child(name: str, options: argparse.Namespace, seconds: float) -> Start:
    """The `Start` of a check. With CUDA, the check is a new program, because a fork of this process could not use CUDA.
    The reason is that libraries look for CUDA while they are imported, which may initialise CUDA in this process.
    """
    if options.device == "cpu":
        return forked(functools.partial(check, name, options.device, seconds, small=options.small))
    flags = ["--child", name, "--device", options.device, "--seconds", str(seconds)]
    command = [sys.executable, "-W", "ignore", __file__, *flags, *(["--small"] if options.small else [])]
    return spawned(command, os.environ)


def preload() -> None:
    """Import slow modules once, for all checks."""
    for module in PRELOADED:
        importlib.import_module(module)


def check(name: str, device: str, seconds: float, *, small: bool) -> None:
    """Run one check in this process, and print its findings."""
    import torch

    from gpu_check.running.setup import Setup

    if device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="omni-part-") as directory:
        setup = Setup(device, small, Path(directory), time.monotonic() + seconds)
        for finding in importlib.import_module(f"gpu_check.checks.{name}").run(setup):
            report(finding)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the parts that need no SGLang on one GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes and few runs, for a trial")
    parser.add_argument("--seconds", type=float, default=DEADLINE, help=f"time for all checks (default: {DEADLINE})")
    parser.add_argument("--only", action="append", choices=list(SECONDS), help="run only this check; repeatable")
    parser.add_argument("--out", type=Path, help="also write the lines to this file")
    parser.add_argument("--child", choices=list(SECONDS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
