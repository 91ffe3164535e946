"""Runs the client programs. Each program runs in an environment with its client library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr

from gateway.answers.audio_formats import to_pcm16
from tests.conftest import ROOT
from tests.server import Server

PROGRAMS = Path(__file__).parent / "programs"
# `make test-clients` sets this variable to the directory that `scripts/install_clients.sh` prints.
LIBRARIES = os.environ.get("OMNI_CLIENT_LIBRARIES", "")


@pytest.fixture(scope="session")
def answers(
    demo_server: Server, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """A function that returns the answers of a program, by the name of the question. Each program runs only once."""
    directory = tmp_path_factory.mktemp("programs")
    shutil.copytree(PROGRAMS, directory, dirs_exist_ok=True)
    # Node looks for packages next to the program, so a link to the packages is put there.
    (directory / "node_modules").symlink_to(Path(LIBRARIES) / "node_modules")
    # The realtime programs send this recording as speech. Not all of their environments can resample it, so it is
    # resampled here.
    samples, rate = soundfile.read(data / "query_to_cars.wav", dtype="float32")
    (directory / "query_to_cars.pcm").write_bytes(to_pcm16(soxr.resample(samples, rate, 24_000)).tobytes())

    @cache
    def run(program: str) -> dict[str, Any]:
        interpreter = "node" if program.endswith(".mjs") else f"{LIBRARIES}/bin/python"
        done = subprocess.run(
            [interpreter, str(directory / program), demo_server.url, str(data)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
