"""The check of a GPU machine works, shown where there is none: on the CPU, and on what a GPU would have said."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import verify_on_gpu
from gpu_check import equality
from gpu_check.machine import Memory, judge
from gpu_check.questions import judge as judge_answer
from gpu_check.report import Check, Report, block, quoted, table
from gpu_check.serving import bench, compare, layouts

from omni_pipeline.config.schema import Config, convert
from omni_pipeline.deployment.resolve import resolve
from omni_pipeline.gpus import parse
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
    assert "Everything that was run passed." in report
    for check in (
        "equality of answers, float32 | pass | 1 of 1 tests passed",
        "colocated: the guide's questions | pass |",
        "colocated: stop | pass | exit status 0",
    ):
        assert f"| {check}" in report
    assert "RAM " in report, "the plan is in it"
    assert str(tmp_path) not in report.replace(str(path), "")
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
        ([CARD], [RIGHT | {"product": 30.0}], "GPU 0 computes what the CPU does"),
        ([Memory("H100", 80 * GIB, 20 * GIB)], [RIGHT], "GPU 0 is free"),
    ],
)
def test_what_is_wrong_with_a_gpu_fails(memory: list[Memory], devices: list[Any], failed: str) -> None:
    assert [check.name for check in judge(memory, {"devices": devices}) if not check.passed] == [failed]


@pytest.mark.parametrize("judged", [True, False])
def test_a_failing_comparison_is_told_with_reason_and_counts_and_fails_where_it_is_judged(
    judged: bool, tmp_path: Path
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "def test_near():\n    print('9 answers, 2 near ties: a; b')\n"
        "def test_far():\n    print('9 voices, 0 near ties')\n    assert [1, 2] == [1, 3], 'other words'\n"
    )
    report = Report(tmp_path / "report.md", "x")
    equality.run(report, "cpu", "float32", [str(test)], tmp_path, part="answers", judged=judged)
    [check] = report.checks
    assert (check.passed, check.detail) == (False if judged else None, "1 of 2 tests passed")
    text = report.markdown()
    assert "| test_near | passed | 9 answers, 2 near ties: a; b |" in text
    assert "other words" in text
    assert not report.passed


def test_tests_that_cannot_run_fail(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.md", "x")
    equality.run(
        report, "cpu", "float32", [str(tmp_path / "test_not_there.py")], tmp_path, part="answers", judged=False
    )
    assert not report.passed


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
        (200, spoken(LOUD, rate=16000), "its sound has 16000 Hz"),
        (200, spoken(LOUD[:0]), "its sound is silence"),
        (503, {"error": "busy"}, "status 503: busy"),
        (200, {"choices": [{"message": {"content": "Three."}, "finish_reason": "stop"}]}, "it has no sound"),
        (200, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, "it says nothing"),
        (200, {"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}, "it ended with error"),
    ],
)
def test_answers_are_judged(status: int, result: dict[str, Any], problem: str) -> None:
    assert judge_answer(status, result, speech=True).problem == problem


@pytest.mark.parametrize("output", ["text", "speech"])
def test_measuring_uses_flags_that_bench_has_and_tells_of_its_failure(output: str, tmp_path: Path) -> None:
    flags = [*verify_on_gpu.loads([1, 8]), "--requests", "1"]
    text, [check] = bench("http://127.0.0.1:9", "split", output, flags, tmp_path)
    assert (check.passed, check.detail) == (False, "ended with 1"), text  # nobody listens; a usage error is 2
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


def test_nothing_looked_at_is_no_success(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.md", "x", [Check("a", None)])
    assert not report.passed
    report.add("Found", "words", Check("b", True))
    assert report.passed
    assert report.path.read_text() == report.markdown()


def test_words_of_a_model_mean_nothing_in_the_report() -> None:
    assert quoted("`a`") == "`'a'`"
    assert table(("x",), [("a|b\nc",)]).endswith("| a\\|b c |")
    assert block("a\n") == "```text\na\n```"


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
    assert on_device(own, "cpu") == own
