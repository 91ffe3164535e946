"""Runs the tests that compare stages on the device with Hugging Face, and reads the results of the tests."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import re
import sys
import xml.etree.ElementTree as Xml
from dataclasses import dataclass
from pathlib import Path

from gpu_check import child
from gpu_check.child import Cause
from gpu_check.report import Check, Report, block, table

ROOT = Path(__file__).parents[2]


class SectionVerdict(enum.Enum):
    """The effect of a failing test on the report."""

    ONE = "one check for the part"
    EACH = "one check for each test, with its figure nearest to the limit"
    TOLD = "it is only reported, and fails nothing"


@dataclass(frozen=True)
class EqualityPart:
    """Tests that are run together.

    Attributes:
        name: A name for what the tests compare, such as "answers". The report shows it.
        dtype: Data type of the stages under test.
        minutes: Maximum number of minutes on a GPU, including the first compilation of kernels.
    """

    name: str
    dtype: str
    tests: tuple[str, ...]
    verdict: SectionVerdict
    minutes: float


ANSWERS = EqualityPart(
    "answers",
    "float32",
    ("tests/equality/test_served.py", "tests/equality/test_spoken.py", "tests/quality/test_demo_model.py"),
    SectionVerdict.ONE,
    90,
)
PARTS = EqualityPart(
    "stages",
    "float32",
    (
        "tests/stages/encoders/test_encoders.py",
        "tests/stages/code2wav/test_streamed_sound.py",
        "tests/stages/code_predictor/test_frames.py",
    ),
    # These tests help to find a fault. But some of them allow only differences that are smaller than the rounding on a
    # GPU.
    SectionVerdict.TOLD,
    30,
)
ROUNDING = EqualityPart(
    "stages and answers",
    "bfloat16",
    ("tests/rounding/test_stages.py", "tests/rounding/test_served.py"),
    SectionVerdict.EACH,
    60,
)
QUALITY = EqualityPart(
    "the demo model's quality", "bfloat16", ("tests/quality/test_demo_model.py",), SectionVerdict.ONE, 30
)
SHARED = EqualityPart(
    "a divided thinker", "float32", ("tests/equality/test_tensor_parallel.py",), SectionVerdict.ONE, 45
)
"""Tests that need two GPUs."""

# The lines that the equality tests print for each comparison.
_COUNTS = re.compile(r"\d+ (?:answers|voices), \d+ near ties.*")
_SHOWN = 1500
_FIGURE = "figure: "
# Maximum seconds of a test, including the start of its servers.
_TEST_SECONDS = {"cpu": 1800, "cuda": 3600}


def run(report: Report, device: str, part: EqualityPart, directory: Path) -> None:
    """Run one part, and report it as one section."""
    results = directory / f"{part.name}-{part.dtype}.xml".replace(" ", "-")
    environment = {**os.environ, "OMNI_TEST_DEVICE": device, "OMNI_TEST_DTYPE": part.dtype}
    settings = ("junit_logging=all", "junit_family=xunit1", f"timeout={_TEST_SECONDS[device]}")
    options = ["-q", "-p", "no:cacheprovider", *(word for setting in settings for word in ("-o", setting))]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={results}", *part.tests]
    done = child.run(command, part.minutes * 60, cwd=ROOT, environment=environment)
    heading = f"Equality with Hugging Face: {part.name}, {device} in {part.dtype}"
    name = f"{part.name}, {part.dtype}"
    late = [Check(f"{name}: in time", False, f"ended after {part.minutes:g} min")] if done.cause is Cause.TIME else []
    if not results.is_file():
        report.add(heading, block(done.output[-_SHOWN:]), *late, Check(name, False, "the tests did not run"))
        done.go_on()
        return
    cases = [ReportedCase.of(case) for case in Xml.parse(results).getroot().iter("testcase")]
    # In pytest's file, an unfinished test looks like a passed test, because its setup has passed.
    if done.cause is not Cause.ITSELF and cases:
        cases[-1] = dataclasses.replace(cases[-1], outcome="unfinished")
    failed = [case for case in cases if case.failed]
    judged = [case for case in cases if case.outcome != "skipped"]
    detail = f"{sum(case.outcome == 'passed' for case in cases)} of {len(judged)} tests passed"
    sections = [table(("test", "outcome", "found"), [(case.name, case.outcome, case.printed) for case in cases])]
    rows = [(case.name, *figure.cells) for case in cases for figure in case.figures]
    sections += [table(("test", "figure", "is", "at most"), rows)] if rows else []
    sections += [f"{case.name}:\n\n{block(case.reason)}" for case in failed]
    passed: bool | None = bool(judged) and not failed and done.status == 0
    if part.verdict is SectionVerdict.TOLD or (done.cause is Cause.INTERRUPT and not failed):
        passed = None
    checks = [Check(name, passed, detail)]
    if part.verdict is SectionVerdict.EACH:
        checks += [case.check(part.dtype) for case in judged]
    report.add(heading, "\n\n".join(sections), *late, *checks)
    done.go_on()


@dataclass(frozen=True)
class Figure:
    """A value that a test has measured, and its upper limit."""

    name: str
    value: float
    most: float

    @property
    def share(self) -> float:
        """The value as a share of the limit; infinite if the value is NaN, or if the limit is 0 and the value is above
        0.
        """
        if self.value <= 0:
            return 0.0
        return self.value / self.most if self.most and not math.isnan(self.value) else math.inf

    @property
    def cells(self) -> tuple[str, str, str]:
        return self.name, f"{self.value:.3g}", f"{self.most:.3g}"


@dataclass(frozen=True)
class ReportedCase:
    """One test of a run.

    Attributes:
        printed: The counts of near ties that the test has printed.
        reason: The reason why the test failed.
    """

    name: str
    outcome: str
    printed: str
    figures: tuple[Figure, ...]
    reason: str

    @classmethod
    def of(cls, case: Xml.Element) -> ReportedCase:
        """The case from its element in pytest's JUnit file."""
        kinds = ("failure", "error", "skipped")
        outcome = next((kind for kind in kinds if case.find(kind) is not None), "passed")
        found = case.find(outcome)
        counts = _COUNTS.findall(case.findtext("system-out") or "")
        figures = [
            Figure(one.get("name", "").removeprefix(_FIGURE), *json.loads(one.get("value", "")))
            for one in case.iter("property")
            if one.get("name", "").startswith(_FIGURE)
        ]
        reason = "" if found is None else (found.get("message") or found.text or "")[:_SHOWN]
        return cls(case.get("name", ""), outcome, "; ".join(one[:200] for one in counts), tuple(figures), reason)

    @property
    def failed(self) -> bool:
        return self.outcome in ("failure", "error")

    def check(self, dtype: str) -> Check:
        """The check for one test. It states the measured value that is largest in relation to its limit."""
        name = f"{dtype}: {self.name}"
        if self.outcome == "unfinished":
            return Check(name, None, "unfinished")
        if not self.figures:
            return Check(name, not self.failed, self.reason.partition("\n")[0][:200])
        nearest = max(self.figures, key=lambda figure: figure.share)
        figure, value, most = nearest.cells
        return Check(name, not self.failed, f"{figure} {value}", most)
