#!/usr/bin/env python3
"""Collects the files that `bare.py` needs on a machine without a network: wheels, and SGLang's sources.

    python scripts/gpu_check/bundle.py          # into out/bare-gpu, which git ignores

The wheels are for the Python of that machine (--python), and have the versions in requirements/constraints.txt.
SGLang's wheel is cut down to its Python and CUDA sources: its compiled parts fit only one version of torch, and the
checks do not use them. So the bundle stays below 32 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "out" / "bare-gpu"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
MANIFEST = "manifest.json"

MOST_BYTES = 32 * 1024**2

PARTS = ("msgspec", "pyzmq")
"""Packages that parts.py needs besides torch and transformers."""

ENGINE = (
    "annotated-types", "apache-tvm-ffi", "compressed-tensors", "dill", "distro", "fastapi", "gguf", "ipython", "loguru",
    "openai", "opentelemetry-api", "orjson", "partial-json-parser", "pybase64", "pydantic", "pydantic-core",
    "setproctitle", "sniffio", "starlette", "traitlets", "typing-inspection", "uvicorn",
)  # fmt: skip
"""Our modules import some modules of SGLang, and these modules import the packages in this list. Torch, transformers
and their dependencies are left out.
"""

_SUFFIXES = (".py", ".cuh", ".cu", ".h", ".hpp", ".cpp", "METADATA")
_UNUSED = ("sglang/multimodal_gen/", "sglang/test/", "sglang/benchmark/", "sglang/srt/rust_extensions/_")
# SGLang has files with tuned settings for the kernels of experts. The bundle contains only the files for these GPUs.
_TUNED_FOR = ("NVIDIA_H100", "NVIDIA_H200", "NVIDIA_H20")
_PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_26", "manylinux_2_24", "manylinux_2_17", "manylinux2014")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="omni-bundle-") as directory:
        downloaded = Path(directory)
        download([*PARTS, *ENGINE, "sglang"], downloaded, options.python)
        for wheel in sorted(downloaded.iterdir()):
            if wheel.name.startswith("sglang-"):
                cut(wheel, options.out / wheel.name)
            else:
                shutil.copy(wheel, options.out)
    size = write_manifest(options.out, options.python)
    print(f"{options.out}: {size / 1024**2:.1f} MiB in {len(list(options.out.iterdir()))} files")
    if size > MOST_BYTES:
        print(f"bundle: that is more than {MOST_BYTES / 1024**2:.0f} MiB", file=sys.stderr)
        return 1
    return 0


def download(packages: Sequence[str], directory: Path, python: str) -> None:
    """Download wheels of the pinned versions, without their dependencies."""
    pinned = pins(CONSTRAINTS.read_text())
    wanted = [f"{name}=={pinned[name]}" if name in pinned else name for name in packages]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    flags = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *flags]
    subprocess.run([*command, "--dest", directory, *wanted], check=True)


def pins(constraints: str) -> dict[str, str]:
    """The pinned versions by normalised package name."""
    lines = (line.split("#")[0].strip().partition("==") for line in constraints.splitlines())
    return {name.lower().replace("_", "-"): version for name, sign, version in lines if sign}


def cut(wheel: Path, target: Path) -> None:
    """Copy only the wheel's sources."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as part:
        for name in filter(is_wanted, whole.namelist()):
            part.writestr(name, whole.read(name))


def is_wanted(name: str) -> bool:
    """Whether a file of SGLang's wheel goes into the bundle."""
    if name.startswith(_UNUSED):
        return False
    if name.endswith(".json"):
        return any(gpu in name for gpu in _TUNED_FOR) or "moe_runner" not in name
    return name.endswith(_SUFFIXES)


def write_manifest(directory: Path, python: str) -> int:
    """Write the name, size and hash of each file. Returns the total size."""
    files = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    listed = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]
    (directory / MANIFEST).write_text(json.dumps({"python": python, "files": listed}, indent=2) + "\n")
    return sum(path.stat().st_size for path in directory.iterdir())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Collect what bare.py needs on a machine without a network.")
    parser.add_argument("--out", type=Path, default=BUNDLE, help="default: out/bare-gpu")
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python (default: 3.12)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
