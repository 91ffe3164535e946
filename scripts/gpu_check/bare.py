#!/usr/bin/env python3
"""Checks this project on a bare machine: one GPU, torch, Triton and transformers, but no SGLang and no network.

    python scripts/gpu_check/bundle.py                              # first, on a machine with a package index
    python scripts/gpu_check/bare.py --minutes 9 --out results      # then, on the bare machine

The bare machine needs the checkout, and the bundle that the first command makes.

This script unpacks the bundle into a temporary directory. Then it runs parts.py, and after that engine.py. Both scripts
together take at most --minutes minutes. For each check, a line of JSON is printed. The files parts.jsonl and
engine.jsonl in the directory --out keep these lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
BUNDLE = HERE.parents[1] / "out" / "bare-gpu"

# The share of the total time that parts.py may use. The rest is for engine.py.
_PARTS_SHARE = 0.48
# Seconds that a child may take to end after its time is up.
_MARGIN = 15

# Through this entry point, SGLang finds our platform for machines without a GPU. The installation of the project
# creates the entry point. On the bare machine, the project is not installed, so this script writes the file with the
# entry point.
_ENTRY_POINTS = "[sglang.srt.platforms]\nomni_cpu = stages.sglang_engine.cpu_platform:activate\n"
_METADATA = "Metadata-Version: 2.1\nName: omni-pipeline\nVersion: 0\n"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    until = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omni-bare-") as directory:
        try:
            unpack(options.bundle, Path(directory))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            print(f"bare: {error}", file=sys.stderr)
            return 2
        seconds = until - time.monotonic() - _MARGIN
        statuses = [run("parts", seconds * _PARTS_SHARE, directory, options)]
        statuses.append(run("engine", until - time.monotonic() - _MARGIN, directory, options))
    return max(statuses)


def unpack(bundle: Path, directory: Path) -> None:
    """Unpack the bundle's wheels as an installer would, without their scripts.

    Raises:
        OSError: There is no bundle.
        ValueError: A file has changed since it was collected.
    """
    try:
        manifest = json.loads((bundle / "manifest.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"no bundle in {bundle}: make one with scripts/gpu_check/bundle.py") from None
    for file in manifest["files"]:
        path = bundle / file["name"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            raise ValueError(f"{path} is damaged: make the bundle again")
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(directory)
    own = directory / "omni_pipeline-0.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(_METADATA)
    (own / "entry_points.txt").write_text(_ENTRY_POINTS)


def run(name: str, seconds: float, directory: str, options: argparse.Namespace) -> int:
    """Run one of the two scripts. Each script limits its own time. The additional limit in this function ends a script
    that hangs.
    """
    flags = [
        "--device",
        options.device,
        "--seconds",
        f"{max(1.0, seconds):.0f}",
        *(["--small"] if options.small else []),
    ]
    command = [sys.executable, HERE / f"{name}.py", *flags, "--out", options.out / f"{name}.jsonl"]
    paths = [directory, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    # The script inherits standard error. If it cannot start, it prints the reason there, and no line of JSON.
    child = subprocess.Popen(command, env=environment)
    try:
        return min(1, abs(child.wait(max(1.0, seconds) + _MARGIN)))
    except subprocess.TimeoutExpired:
        child.kill()
        problem = {"check": name, "result": "FAIL", "figures": {"problem": "the script itself was out of time"}}
        print(json.dumps(problem), flush=True)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check this project on a bare machine with one GPU.")
    parser.add_argument("--minutes", type=float, default=9, help="time for the whole run (default: 9)")
    parser.add_argument(
        "--out", type=Path, default=Path("bare-gpu-results"), help="also write the lines to this directory"
    )
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="default: out/bare-gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes and few runs, for a trial")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
