"""A short form of the fuzzing in operations.md shows that no request gets an answer that the API does not allow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("part", "cases"),
    [("media", 240), ("forms", 150), ("api", 100), ("responses", 100), ("speech", 100), ("conversations", 200)],
)
def test_a_served_model_survives(speaker: Server, tmp_path: Path, part: str, cases: int) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, ROOT / "scripts" / "fuzz.py", "--url", speaker.url, "--part", part]
    done = subprocess.run(
        [*command, "--cases", str(cases), "--seed", "7", "--report", report],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(report.read_bytes())
    assert found["cases"] >= cases
    assert not found["findings"]
    assert not found["crashes"]
    outcomes = {outcome.split()[1] for outcome in found["outcomes"]}
    assert {"200", "400"} <= outcomes, "some are taken and some are not"
    assert speaker.healthy()
