#!/usr/bin/env python3
"""Checks this project on a machine with GPUs, and writes one report to paste into an issue.

    make install
    .venv/bin/python scripts/verify_on_gpu.py               # with small checkpoints only
    .venv/bin/python scripts/verify_on_gpu.py --model-path /models/Qwen3-Omni-30B-A3B-Instruct

Looks at the driver and the memory; runs the tests against Hugging Face with the servers on the GPU; then starts every
layout that fits, asks the usage guide's questions, measures it with `sgl-omni bench`, and compares the memory it takes
with the plan. It ends with 0 if everything that was run passed. Without --model-path, a small random checkpoint takes
the real one's place. `--device cpu` does the same on the CPU, to see that this script works.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_check import equality, machine, serving  # noqa: E402
from gpu_check.report import Check, Report  # noqa: E402

DTYPES = ("float32", "bfloat16")
SMALL = ROOT / "checkpoints" / "tiny"
CONCURRENCY = (1, 8)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    report = Report(options.report, f"omni-pipeline on {options.device}: does it work, and is it as planned?")
    print(f"The report is {options.report}", flush=True)
    if not machine.look(report, options.device):
        print("CUDA cannot be used here: see the report.", file=sys.stderr)
        return 1
    gpus = len(machine.gpu_memory()) if options.device == "cuda" else 0
    tests = options.equality
    if tests is None:
        tests = [*equality.TESTS, *(equality.SHARED if gpus != 1 else ())]
    with tempfile.TemporaryDirectory(prefix="omni-verify-") as directory:
        if tests:
            compare(report, options.device, tests, Path(directory))
        else:
            report.add("", "", Check("equality", None, "left out"))
        serve(report, options, gpus, Path(directory))
    print(f"\n{'Everything passed' if report.passed else 'Something failed'}: {options.report}")
    return 0 if report.passed else 1


def compare(report: Report, device: str, tests: Sequence[str], directory: Path) -> None:
    """Everything against Hugging Face: bfloat16, and parts by themselves, are told and not judged."""
    on_gpu = device == "cuda"
    for dtype in DTYPES if on_gpu else DTYPES[:1]:
        exact = dtype == "float32"
        equality.run(report, device, dtype, tests, directory, part="answers", judged=exact)
        if on_gpu:
            equality.run(report, device, dtype, equality.STAGES, directory, part="stages", judged=False)


def serve(report: Report, options: argparse.Namespace, gpus: int, directory: Path) -> None:
    """Every layout, with the real checkpoint or a small one."""
    if options.model_path is None:
        script = ROOT / "scripts" / "make_tiny_checkpoint.py"
        subprocess.run([sys.executable, script, "--out", SMALL], check=True, stdout=subprocess.DEVNULL)
        report.add("", "", Check("the real checkpoint", None, "no --model-path; a small random one takes its place"))
    # What servers may read is this directory alone.
    shutil.copytree(ROOT / "tests" / "data", directory / "tests" / "data")
    measured = (*loads(options.concurrency or CONCURRENCY), "--requests", str(options.bench_requests))
    bench = None if options.no_bench else measured
    run = serving.Run(options.model_path or SMALL, options.device, directory, bench)
    for layout in serving.layouts(gpus):
        if not options.layout or layout.name in options.layout:
            serving.try_layout(report, layout, run)


def loads(streams: Sequence[int]) -> list[str]:
    """Flags of `sgl-omni bench` for so many requests at a time."""
    return [word for number in streams for word in ("--concurrency", str(number))]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check this project on a machine with GPUs, and write a report.")
    parser.add_argument("--model-path", type=Path, help="directory of the real checkpoint")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--report", type=Path, default=Path("gpu-report.md"), help="default: gpu-report.md")
    parser.add_argument("--layout", action="append", help="only this one; repeatable (text, split, colocated, …)")
    parser.add_argument("--equality", nargs="*", metavar="TEST",
                        help="tests to run against Hugging Face; none to leave them out")  # fmt: skip
    parser.add_argument("--no-bench", action="store_true", help="ask, but do not measure")
    parser.add_argument("--concurrency", action="append", type=int, help="streams to measure with (default: 1 and 8)")
    parser.add_argument("--bench-requests", type=int, default=32, help="at each load (default: 32)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
