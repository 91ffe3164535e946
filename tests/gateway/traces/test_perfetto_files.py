"""Tests files in Chrome's trace event format: their content, and the number of files that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.traces.perfetto_files import ChromeFiles, document
from gateway.traces.request_timeline import Traced
from tests.gateway.traces.requests import TRACE_ID, spoken, traced

PLACES = {"thinker": "gpu", "decode": "cpu"}


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return json.loads(msgspec.json.encode(document(spoken(), PLACES)))["traceEvents"]


def names(events: list[dict[str, Any]], kind: str) -> dict[int, str]:
    key = "pid" if kind == "process_name" else "tid"
    return {event[key]: event["args"]["name"] for event in events if event["name"] == kind}


def test_processes_are_workers_and_threads_are_stages(events: list[dict[str, Any]]) -> None:
    processes, threads = names(events, "process_name"), names(events, "thread_name")
    assert list(processes.values()) == ["main", "gpu", "cpu"]
    assert list(threads.values()) == ["gateway", "thinker", "decode"]
    [step] = [event for event in events if event["name"] == "step" and event["args"]["batch"] == 4]
    assert (processes[step["pid"]], threads[step["tid"]]) == ("gpu", "thinker")


def test_times_count_in_microseconds_from_the_request(events: list[dict[str, Any]]) -> None:
    [queue] = [event for event in events if event["name"] == "queue"]
    assert (queue["ts"], queue["dur"]) == pytest.approx((200_000, 100_000))
    [request] = [event for event in events if event["name"] == "request"]
    assert (request["ts"], request["dur"]) == pytest.approx((0, 1_000_000))


def test_slice_of_a_stage_holds_its_waits_and_steps(events: list[dict[str, Any]]) -> None:
    [thinker] = [event for event in events if event["name"] == "thinker"]
    assert (thinker["ts"], thinker["dur"]) == pytest.approx((200_000, 400_000))
    assert thinker["args"] == pytest.approx(
        {"transfers": 1, "queues": 1, "steps": 1} | {"transfer_seconds": 0.1, "queue_seconds": 0.1, "step_seconds": 0.3}
    )


def test_transfers_are_pairs_of_asynchronous_events(events: list[dict[str, Any]]) -> None:
    begins = {event["id"]: event for event in events if event["ph"] == "b"}
    ends = {event["id"]: event for event in events if event["ph"] == "e"}
    assert begins.keys() == ends.keys()
    assert [event["name"] for event in begins.values()] == ["gateway → thinker", "thinker → decode"]
    for number, begin in begins.items():
        assert {key: value for key, value in begin.items() if key not in ("ph", "ts")} == {
            key: value for key, value in ends[number].items() if key not in ("ph", "ts")
        }
        assert ends[number]["ts"] > begin["ts"]


def test_document_says_which_request_it_is_and_how_it_went() -> None:
    about = document(spoken(), PLACES)["otherData"]
    assert about["trace_id"] == TRACE_ID
    assert (about["request_id"], about["answer_id"], about["outcome"]) == ("req-1", "chatcmpl-1", "ok")
    assert about["wall_seconds"] == pytest.approx(1.0)
    assert about["began"].startswith("2023-11-14T22:13:20")


def test_file_is_whole_and_named_by_time_and_answer(tmp_path: Path) -> None:
    ChromeFiles(tmp_path, 10, 10**9).write(spoken(), PLACES)
    [path] = tmp_path.iterdir()
    assert path.name == "20231114T221320.000000-chatcmpl-1.trace.json"
    assert path.read_bytes() == msgspec.json.encode(document(spoken(), PLACES))


def test_request_that_was_refused_leaves_no_file(tmp_path: Path) -> None:
    refused = traced()
    refused.answer_id = ""
    ChromeFiles(tmp_path, 10, 10**9).write(refused, {})
    assert list(tmp_path.iterdir()) == []


def test_oldest_files_go_those_of_earlier_runs_first_and_nothing_else(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.touch()
    files = ChromeFiles(tmp_path, 2, 10**9)
    for second in range(2):
        timeline = traced(began=100.0 + second, ended=200.0)
        timeline.epoch = 1_700_000_000.0
        files.write(timeline, {})
    earlier = sorted(tmp_path.glob("*.json"))
    files = ChromeFiles(tmp_path, 2, 10**9)
    timeline = traced(began=110.0, ended=200.0)
    timeline.epoch = 1_700_000_000.0
    files.write(timeline, {})
    assert not earlier[0].exists()
    assert earlier[1].exists()
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert other.exists()


def at(second: float) -> Traced:
    timeline = spoken(began=100.0 + second, ended=200.0)
    timeline.epoch = 1_700_000_000.0
    return timeline


def total(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_all_files_together_are_bounded_in_bytes(tmp_path: Path) -> None:
    size = len(msgspec.json.encode(document(at(0), PLACES)))
    # This file was left by a server that was killed.
    (tmp_path / "20200101T000000.000000-chatcmpl-9.trace.part").write_bytes(b"x" * size)
    files = ChromeFiles(tmp_path, 1000, round(3.5 * size))
    for second in range(10):
        files.write(at(second), PLACES)
        assert total(tmp_path) <= 3.5 * size
    assert [path.name[:15] for path in sorted(tmp_path.iterdir())] == [
        f"20231114T221{500 + second}" for second in (7, 8, 9)
    ]
    ChromeFiles(tmp_path, 1000, round(1.5 * size))
    assert total(tmp_path) <= 1.5 * size
    assert len(list(tmp_path.iterdir())) == 1


def test_a_timeline_that_is_larger_than_the_bound_removes_no_other(tmp_path: Path) -> None:
    size = len(msgspec.json.encode(document(at(0), PLACES)))
    ChromeFiles(tmp_path, 10, size).write(at(0), PLACES)
    with pytest.raises(ValueError, match=r"trace\.total_bytes"):
        ChromeFiles(tmp_path, 10, size).write(spoken(note="x" * size), PLACES)
    assert total(tmp_path) == size


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ChromeFiles(tmp_path, 10, 10**9)

    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        files.write(at(0), PLACES)
    assert list(tmp_path.iterdir()) == []
