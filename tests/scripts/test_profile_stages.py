"""Each sample of a profile is counted under the kind of work that its innermost known function does."""

from __future__ import annotations

from pathlib import Path

import profile_stages
import pytest

LOOP = "run (/app/omni_pipeline/worker/loop.py:90);step (/app/stages/thinker/stage.py:120)"


@pytest.mark.parametrize(
    ("inner", "kind"),
    [
        ("", "our Python"),
        (";schedule (/venv/sglang/srt/managers/schedule_policy.py:12)", "SGLang's scheduling"),
        (";forward (/app/stages/x.py:1);at::native::add_kernel (libtorch_cpu.so)", "other torch operations"),
        (";addmm (libtorch_cpu.so);dnnl_sgemm (libtorch_cpu.so);0x7f00 (?)", "matrix products"),
        (";send (/app/omni_pipeline/wire/transport.py:3);zmq_msg_send (libzmq.so)", "messages"),
    ],
)
def test_the_innermost_known_function_decides(inner: str, kind: str) -> None:
    assert profile_stages.kind_of(LOOP + inner) == kind


def test_the_time_of_a_thread_is_divided_by_its_samples() -> None:
    profile = [
        f"thread (7): MainThread;{LOOP} 1",
        "thread (7): MainThread;clone (libc.so.6) 3",
        f"thread (7): MainThread;{LOOP};poll (libc.so.6) 90",
        "thread (8): I/O;zmq_poll (libzmq.so);read (libc.so.6) 1",
    ]
    assert profile_stages.divide({7: 100.0, 8: 20.0, 9: 4.0}, profile) == {
        "our Python": 25.0,
        "other": 79.0,
        "messages": 20.0,
    }


def test_the_table_leaves_out_kinds_without_work() -> None:
    measured = {"thinker": {"matrix products": 300.0, "copies": 1.0}, "gateway": {"messages": 40.4}}
    assert profile_stages.table("text", 8, measured).splitlines() == [
        "| text, 8 streams | all | matrix products | messages |",
        "|---|---|---|---|",
        "| thinker | 301 | 300 |  |",
        "| gateway | 40 |  | 40 |",
        "| all processes | 341 | 300 | 40 |",
    ]


def test_py_spy_is_installed() -> None:
    assert Path(profile_stages.py_spy()).exists()
