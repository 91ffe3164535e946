#!/usr/bin/env python3
"""Checks our engine on SGLang's scheduler and models, with stand-ins for SGLang's compiled kernels, on one GPU.

    python scripts/gpu_check/engine.py                        # on the GPU, in bfloat16
    python scripts/gpu_check/engine.py --device cpu --small   # for a trial, in float32

The script needs SGLang's Python sources and the packages that they import; `bare.py` provides them if they are not
installed. Attention, routing and experts are SGLang's Triton kernels. The other kernels are replaced by torch functions
(`stand_ins`). So the script needs no build of SGLang's kernels for the installed torch, and no CUDA compiler. But it
does not check SGLang's compiled kernels.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_check.engine_checks import SECONDS  # noqa: E402
from gpu_check.running.children import findings, spawned  # noqa: E402
from gpu_check.running.finding import Finding, Log, report  # noqa: E402
from gpu_check.running.setup import Setup  # noqa: E402

DEADLINE = 300
CHECKPOINT = ROOT / "demo" / "qwen3-omni-demo"
_RESERVE = 5


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        check(options)
        return 0
    log = Log(options.out)
    until = time.monotonic() + options.seconds
    for name in options.only or SECONDS:
        seconds = min(SECONDS[name], until - time.monotonic())
        if seconds <= _RESERVE:
            log.add(Finding(name, False, {"problem": "no time was left for it"}))
            continue
        flags = ["--child", name, "--device", options.device, "--seconds", str(seconds - _RESERVE)]
        flags += ["--checkpoint", str(options.checkpoint), *(["--small"] if options.small else [])]
        command = [sys.executable, "-W", "ignore", __file__, *flags]
        for finding in findings(name, spawned(command, environment(options.device)), seconds):
            log.add(finding)
    return log.status


def environment(device: str) -> dict[str, str]:
    """Environment of a child."""
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The default backend of the radix tree is compiled code, which works with only one version of torch.
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python",
    }
    return {**os.environ, **fixed, **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}


def check(options: argparse.Namespace) -> None:
    """Run one check in this process."""
    import torch

    from stages.sglang_engine import environment as sglang_environment

    sglang_environment.prepare()
    if options.device == "cpu":
        torch.set_num_threads(1)
    else:
        from gpu_check.stand_ins import install

        install.package()
        install.compiled()
    _suit_older_torch()
    with tempfile.TemporaryDirectory(prefix="omni-engine-") as directory:
        setup = Setup(options.device, options.small, Path(directory), time.monotonic() + options.seconds)
        for finding in importlib.import_module(f"gpu_check.engine_checks.{options.child}").run(
            setup, options.checkpoint
        ):
            report(finding)


def _suit_older_torch() -> None:
    """If torch is too old for `quiet_single_rank_groups`, turn this function off. Then SGLang's process groups of one
    rank stay ordinary Gloo groups. Torch 2.11, for example, lacks a function that `quiet_single_rank_groups` calls.
    """
    import contextlib

    from torch.distributed import Backend

    from stages.sglang_engine import process_groups

    if not hasattr(Backend, "_ensure_backend_registered"):
        process_groups.quiet_single_rank_groups = contextlib.nullcontext  # type: ignore[assignment]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check our engine on SGLang with stand-ins for its kernels.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="fewer requests and runs, for a trial")
    parser.add_argument("--seconds", type=float, default=DEADLINE, help=f"time for all checks (default: {DEADLINE})")
    parser.add_argument("--only", action="append", choices=list(SECONDS), help="run only this check; repeatable")
    parser.add_argument("--out", type=Path, help="also write the lines to this file")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the demo model")
    parser.add_argument("--child", choices=list(SECONDS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
