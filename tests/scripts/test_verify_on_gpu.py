"""The check of a GPU machine works. The tests need no GPU: they run the check on the CPU, and evaluate outputs as a GPU
machine would produce them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
import soundfile
import verify_on_gpu
from gpu_check import child, equality
from gpu_check.child import Cause
from gpu_check.equality import EqualityPart, SectionVerdict
from gpu_check.machine import Memory, judge
from gpu_check.questions import judge as judge_answer
from gpu_check.report import Check, Report
from gpu_check.serving import bench, compare, layouts

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.gpus import parse
from tests.conftest import ROOT
from tests.device import on_device
from tests.server import split

GIB = 1024**3
QUICK = "tests/stages/checkpoint/test_tensor_shapes.py::test_the_30b_model_has_the_published_number_of_parameters"


def test_a_whole_run_on_the_cpu_writes_a_report_that_says_what_passed(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.md"
    flags = ["--device", "cpu", "--report", str(path), "--layout", "colocated", "--model-path", str(tiny_checkpoint)]
    flags += ["--no-bench"]
    status = verify_on_gpu.main([*flags, "--equality", QUICK])
    report = path.read_text()
    assert status == 0, report
    assert report.splitlines()[2].startswith("**Everything that was run passed**, in ")
    assert "| the real checkpoint | told |" not in report
    for check in (
        "answers, float32 | pass | 1 of 1 tests passed",
        "colocated: the guide's questions | pass |",
        "colocated: stop | pass | exit status 0",
    ):
        assert f"| {check}" in report
    assert "RAM " in report, "the plan is in it"
    assert str(tmp_path) not in report
    assert str(Path.home()) not in report
    assert f"Everything passed: {path}" in capsys.readouterr().out


def test_without_a_gpu_it_ends_at_once_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "report.md"
    assert verify_on_gpu.main(["--report", str(path)]) == 1
    assert "| torch sees every GPU | **FAIL** | no GPU was found |" in path.read_text()


CARD = Memory("H100", 80 * GIB, GIB // 2)
RIGHT = {"product": 2e-5, "filtered": 1e-2}


def test_a_gpu_that_computes_rightly_and_is_free_passes() -> None:
    assert all(check.passed for check in judge([CARD, CARD], {"devices": [RIGHT, RIGHT]}))


@pytest.mark.parametrize(
    ("memory", "devices", "failed"),
    [
        ([CARD, CARD], [RIGHT], "torch sees every GPU"),
        ([CARD], [RIGHT | {"product": 30.0}], "GPU 0 computes like the CPU"),
        ([Memory("H100", 80 * GIB, 20 * GIB)], [RIGHT], "GPU 0 is free"),
    ],
)
def test_what_is_wrong_with_a_gpu_fails(memory: list[Memory], devices: list[Any], failed: str) -> None:
    assert [check.name for check in judge(memory, {"devices": devices}) if not check.passed] == [failed]


@pytest.mark.parametrize("verdict", [SectionVerdict.ONE, SectionVerdict.TOLD])
def test_a_failing_comparison_is_told_with_reason_and_counts_and_fails_where_it_is_judged(
    verdict: SectionVerdict, tmp_path: Path
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "def test_near():\n    print('9 answers, 2 near ties: a; b')\n"
        "def test_far():\n    print('9 voices, 0 near ties')\n    assert [1, 2] == [1, 3], 'other words'\n"
    )
    report = Report(tmp_path / "report.md", "x")
    equality.run(report, "cpu", EqualityPart("answers", "float32", (str(test),), verdict, 5), tmp_path)
    [check] = report.checks
    assert (check.passed, check.detail) == (None if verdict is SectionVerdict.TOLD else False, "1 of 2 tests passed")
    text = report.markdown()
    assert "| test_near | passed | 9 answers, 2 near ties: a; b |" in text
    assert "other words" in text
    assert not report.passed


def test_tests_that_cannot_run_fail(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.md", "x")
    missing = str(tmp_path / "test_not_there.py")
    equality.run(report, "cpu", EqualityPart("answers", "float32", (missing,), SectionVerdict.TOLD, 5), tmp_path)
    assert not report.passed


def test_each_judged_test_is_a_check_with_its_figure_nearest_to_the_limit(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "def test_it(record_property):\n"
        "    record_property('figure: near', '[0.9, 1.0]')\n"
        "    record_property('figure: far', '[0.5, 5.0]')\n"
        "def test_none(record_property):\n"
        "    record_property('figure: none', '[0, 0]')\n"
        "def test_beyond(record_property):\n"
        "    record_property('figure: nan', '[NaN, 1.0]')\n"
        "    assert False, 'it is no number'\n"
    )
    report = Report(tmp_path / "report.md", "x")
    equality.run(report, "cpu", EqualityPart("stages", "bfloat16", (str(test),), SectionVerdict.EACH, 5), tmp_path)
    assert report.checks == [
        Check("stages, bfloat16", False, "2 of 3 tests passed"),
        Check("bfloat16: test_it", True, "near 0.9", "1"),
        Check("bfloat16: test_none", True, "none 0", "0"),
        Check("bfloat16: test_beyond", False, "nan nan", "1"),
    ]
    assert "| test_it | far | 0.5 | 5 |" in report.markdown()


def test_tests_whose_time_is_up_are_ended_and_fail(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("import time\ndef test_slow():\n    time.sleep(600)\n")
    report = Report(tmp_path / "report.md", "x")
    equality.run(report, "cpu", EqualityPart("answers", "float32", (str(test),), SectionVerdict.ONE, 0.02), tmp_path)
    assert [(check.name, check.passed) for check in report.checks] == [
        ("answers, float32: in time", False),
        ("answers, float32", False),
    ]


def test_a_command_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """The command ignores Ctrl-C, and so does its child."""
    command = ["sh", "-c", "trap '' INT; sleep 600 & echo $!; wait"]
    done = child.run(command, 2, cwd=tmp_path, environment=os.environ, gentle_seconds=1)
    assert done.cause is Cause.TIME
    left = int(done.output)
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def spoken(samples: numpy.ndarray, rate: int = 24000) -> dict[str, Any]:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    message = {"content": "Three.", "audio": {"data": base64.b64encode(buffer.getvalue()).decode()}}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


LOUD = numpy.sin(numpy.arange(12000) / 10).astype("float32") / 2


@pytest.mark.parametrize(
    ("status", "result", "problem"),
    [
        (200, spoken(LOUD), ""),
        (200, spoken(LOUD * 0), "its sound is silence"),
        (200, spoken(LOUD, rate=16000), "its sampling rate is 16000 Hz"),
        (200, spoken(LOUD[:0]), "its sound is silence"),
        (503, {"error": "busy"}, "status 503: busy"),
        (200, {"choices": [{"message": {"content": "Three."}, "finish_reason": "stop"}]}, "it has no sound"),
        (200, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, "it has no text"),
        (200, {"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}, "it ended with error"),
    ],
)
def test_answers_are_judged(status: int, result: dict[str, Any], problem: str) -> None:
    assert judge_answer(status, result, speech=True).problem == problem


@pytest.mark.parametrize("output", ["text", "speech"])
def test_measuring_uses_flags_that_bench_has_and_tells_of_its_failure(output: str, tmp_path: Path) -> None:
    flags = [*verify_on_gpu.loads([1, 8]), "--requests", "1"]
    text, [check] = bench("http://127.0.0.1:9", "split", output, flags, tmp_path)
    # No server runs at this address. After a usage error, the exit status would be 2.
    assert (check.passed, check.detail) == (False, "ended with 1"), text
    assert f"`sgl-omni bench --output {output} --concurrency 1 --concurrency 8 --requests 1`" in text


@pytest.mark.parametrize(("used", "passed"), [(70, True), (60, True), (73, True), (76, False)])
def test_memory_may_exceed_the_plan_by_a_twentieth_of_the_gpu(used: int, passed: bool) -> None:
    plan = {"devices": [{"index": 0, "taken": 70 * GIB}, {"index": None, "taken": GIB}]}
    text, [check] = compare("split", plan, [Memory("H100", 80 * GIB, used * GIB)])
    assert check.passed is passed
    assert f"| GPU 0 | 70.0 | {used}.0 | 80.0 | {(used - 70) / 80:+.1%} |" in text


def test_layouts_grow_with_the_gpus() -> None:
    assert [layout.name for layout in layouts(1)] == ["text", "split", "colocated"]
    assert [layout.flags for layout in layouts(4)][3:] == [("--gpu-thinker", "0,1"), ("--gpu-thinker", "0,1,2,3")]


def test_servers_under_test_may_compile_kernels_on_a_gpu() -> None:
    code = "import tests.server as s; print(s.Server.start_seconds, s.Server.post.__defaults__[0])"
    for device, seconds in (("cpu", "240 120"), ("cuda", "1800 900")):
        environment = {**os.environ, "OMNI_TEST_DEVICE": device}
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == seconds, done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_servers_under_test_move_to_the_gpu_and_keep_what_their_test_says(dtype: str) -> None:
    own = split({"engine": {"chunked_prefill_size": 24}})
    moved = on_device(own, "cuda", dtype)
    config = convert({"model_path": "x", **json.loads(json.dumps(moved))}, Config, "")
    stages = {stage.name: stage for worker in resolve(config, parse("1x24GB")).workers for stage in worker.stages}
    accelerated = [stage for stage in stages.values() if stage.device == "cuda"]
    assert len(accelerated) == 6
    assert {stage.options.dtype for stage in accelerated} == {dtype}
    assert stages["thinker"].options.engine["chunked_prefill_size"] == 24
    assert ("attention_backend" in stages["thinker"].options.engine) == (dtype == "float32")
    assert on_device(own, "cpu", "float32") == own
    here = on_device(own, "cpu", "bfloat16")["stages"]
    assert {name: stage["options"]["dtype"] for name, stage in here.items()} == dict.fromkeys(here, "bfloat16")
    assert len(here) == 6
