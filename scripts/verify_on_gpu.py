#!/usr/bin/env python3
"""Checks this project on a machine with GPUs, and writes one report to paste into an issue.

    make install
    .venv/bin/python scripts/verify_on_gpu.py               # with small checkpoints only
    .venv/bin/python scripts/verify_on_gpu.py --model-path /models/Qwen3-Omni-30B-A3B-Instruct

The script checks the driver and the memory. It runs the tests that compare servers on the GPU with Hugging Face. In
float32, every token must be the same. In bfloat16, the differences must be within the limits of tests/rounding. Then it
starts every layout that fits on the GPUs. For each layout, it asks the usage guide's questions, measures the server
with `sgl-omni bench`, and compares the memory in use with the plan. The exit status is 0 if everything that was run
passed. Without --model-path, the demo model replaces the real one. `--device cpu` runs the same steps on the CPU, to
try this script out. A first run compiles kernels and takes hours. After Ctrl-C, the report has the findings so far.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_check import compiled, equality, machine, serving  # noqa: E402
from gpu_check.equality import EqualityPart  # noqa: E402
from gpu_check.report import Check, Report, block  # noqa: E402

DEMO = ROOT / "demo" / "qwen3-omni-demo"
CONCURRENCY = (1, 8)
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    report = Report(options.report, f"omni-pipeline on {options.device}: does it work, and is it as planned?")
    print(f"The report is {options.report}", flush=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not verify(report, options):
            print("CUDA cannot be used here: see the report.", file=sys.stderr)
    except KeyboardInterrupt:
        report.stop("interrupted")
        print(f"\nInterrupted: {options.report} has the findings so far", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        report.add("Error in the check itself", block(traceback.format_exc()))
        report.stop(f"{type(error).__name__}: {error}")
        raise
    report.finish()
    print(f"\n{'Everything passed' if report.passed else 'Something failed'}: {options.report}")
    return 0 if report.passed else 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def verify(report: Report, options: argparse.Namespace) -> bool:
    """Run every section. Returns False if the machine cannot be used at all."""
    with VerifyStep(report, "the machine"):
        usable = machine.look(report, options.device)
    if not usable:
        return False
    gpus = len(machine.gpu_memory()) if options.device == "cuda" else 0
    parts = comparisons(options.equality, options.device, gpus)
    layouts = [one for one in serving.layouts(gpus) if not options.layout or one.name in options.layout]
    report.minutes = sum(part.minutes for part in parts) + len(layouts) * serving.MINUTES
    with tempfile.TemporaryDirectory(prefix="omni-verify-") as directory:
        for part in parts:
            with VerifyStep(report, f"{part.name}, {part.dtype}"):
                equality.run(report, options.device, part, Path(directory))
        if not parts:
            report.add("", "", Check("equality", None, "left out"))
        serve(report, options, layouts, Path(directory))
    return True


class VerifyStep:
    """A step of the run. The context manager announces the step in the report, and reports the kernels that were
    compiled during the step.
    """

    def __init__(self, report: Report, name: str) -> None:
        self._report, self._name = report, name
        self._caches = compiled.caches()

    def __enter__(self) -> None:
        self._before = compiled.kernels(self._caches)
        self._report.begin(self._name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._report.end()
        if new := compiled.news(self._before, compiled.kernels(self._caches)):
            self._report.add("", "", Check(f"compiled during: {self._name}", None, new))


def comparisons(tests: Sequence[str] | None, device: str, gpus: int) -> list[EqualityPart]:
    """The comparisons with Hugging Face to run: only `tests` if they are given, else all parts for this machine."""
    if tests is not None:
        return [dataclasses.replace(equality.ANSWERS, tests=tuple(tests))] if tests else []
    shared = [equality.SHARED] if gpus != 1 else []
    alone = [equality.PARTS] if device == "cuda" else []
    return [equality.ROUNDING, equality.QUALITY, equality.ANSWERS, *alone, *shared]


def serve(report: Report, options: argparse.Namespace, layouts: Sequence[serving.TriedLayout], directory: Path) -> None:
    """Run every layout with the real checkpoint or the demo model."""
    if options.model_path is None:
        report.add("", "", Check("the real checkpoint", None, "no --model-path; the demo model is used instead"))
    # Servers may read media only from this directory, so it gets a copy of the test data.
    shutil.copytree(ROOT / "tests" / "data", directory / "tests" / "data")
    measured = (*loads(options.concurrency or CONCURRENCY), "--requests", str(options.bench_requests))
    bench = None if options.no_bench else measured
    run = serving.Run(options.model_path or DEMO, options.device, directory, bench)
    for layout in layouts:
        with VerifyStep(report, f"layout {layout.name}"):
            serving.try_layout(report, layout, run)


def loads(streams: Sequence[int]) -> list[str]:
    """The flags with which `sgl-omni bench` measures once for each number of concurrent requests in `streams`."""
    return [word for number in streams for word in ("--concurrency", str(number))]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check this project on a machine with GPUs, and write a report.")
    parser.add_argument("--model-path", type=Path, help="directory of the real checkpoint")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--report", type=Path, default=Path("gpu-report.md"), help="default: gpu-report.md")
    parser.add_argument("--layout", action="append", help="only this layout; repeatable (text, split, colocated, …)")
    parser.add_argument("--equality", nargs="*", metavar="TEST",
                        help="tests that compare with Hugging Face; without names, no such test runs")  # fmt: skip
    parser.add_argument("--no-bench", action="store_true", help="ask the questions, but do not run the benchmark")
    parser.add_argument("--concurrency", action="append", type=int,
                        help="number of concurrent requests; repeatable (default: 1 and 8)")  # fmt: skip
    parser.add_argument("--bench-requests", type=int, default=32, help="requests at each load (default: 32)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
