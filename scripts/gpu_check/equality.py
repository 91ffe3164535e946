"""Runs the tests against Hugging Face with the servers on the device, and reads what they found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as Xml
from collections.abc import Sequence
from pathlib import Path

from gpu_check.report import Check, Report, block, table

ROOT = Path(__file__).parents[2]

TESTS = ("tests/equality/test_served.py", "tests/equality/test_spoken.py")
STAGES = (
    "tests/stages/encoders/test_encoders.py",
    "tests/stages/code2wav/test_streamed_sound.py",
    "tests/stages/code_predictor/test_frames.py",
)
"""Part by part, to find what is wrong; some of these ask for more than other arithmetic can give."""

SHARED = ("tests/equality/test_tensor_parallel.py",)
"""What needs two GPUs."""

# What the equality tests print of each comparison.
_COUNTS = re.compile(r"\d+ (?:answers|voices), \d+ near ties.*")
_SHOWN = 1500


def run(
    report: Report, device: str, dtype: str, tests: Sequence[str], directory: Path, *, part: str, judged: bool
) -> None:
    """One section.

    Args:
        part: What is compared.
        judged: Whether a failing test fails the report, or is only told.
    """
    results = directory / f"equality-{part}-{dtype}.xml"
    environment = {**os.environ, "OMNI_TEST_DEVICE": device, "OMNI_TEST_DTYPE": dtype}
    arguments = ["-q", "-p", "no:cacheprovider", "-o", "junit_logging=all", f"--junitxml={results}", *tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    heading = f"Equality with Hugging Face: {part}, {device} in {dtype}"
    name = f"equality of {part}, {dtype}"
    if not results.is_file():
        report.add(heading, block(done.stdout[-_SHOWN:]), Check(name, False, "the tests did not run"))
        return
    cases = list(Xml.parse(results).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    detail = f"{len(cases) - len(failed) - len(skipped)} of {len(cases)} tests passed"
    passed = bool(cases) and not failed if judged else None
    text = table(("test", "outcome", "found"), [_row(case) for case in cases])
    report.add(heading, "\n\n".join([text, *map(_reason, failed)]), Check(name, passed, detail))


def _row(case: Xml.Element) -> tuple[str, ...]:
    printed = case.findtext("system-out") or ""
    outcome = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
    counts = _COUNTS.findall(printed)
    return case.get("name", ""), outcome, "; ".join(count[:200] for count in counts)


def _reason(case: Xml.Element) -> str:
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return f"{case.get('name')}:\n\n{block((found.get('message') or found.text or '')[:_SHOWN])}"
    return ""
