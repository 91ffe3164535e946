"""A worker records two times for each request and stage: when the stage could have begun, and when it began."""

from __future__ import annotations

from omni_pipeline.wire.messages import Chunk
from omni_pipeline.wire.trace_notes import MARK
from omni_pipeline.worker.recorder import MANY, Recorder


def took(recorder: Recorder, request_id: str, when: float, stage: str = "a") -> None:
    recorder.took(Chunk(request_id, "z", stage, None), when - 1, when, when)


def test_message_is_noted_with_its_way() -> None:
    recorder = Recorder("w", ["a"])
    recorder.took(Chunk("r", "z", "a", None), 1.0, 2.0, 2.5)
    notes = recorder.take(9.0, {"a": ["r"]})
    [note] = notes.took
    assert (notes.worker, notes.until) == ("w", 9.0)
    assert (note.request_id, note.source, note.target) == ("r", "z", "a")
    assert (note.sent, note.taken, note.done) == (1.0, 2.0, 2.5)


def test_step_knows_the_first_and_the_latest_message_it_used() -> None:
    recorder = Recorder("w", ["a"])
    for when in (1.0, 2.0, 3.0):
        took(recorder, "r", when)
    recorder.stepped("a", ["r"], 5.0, 6.0)
    took(recorder, "r", 7.0)
    recorder.stepped("a", ["r"], 8.0, 9.0)
    first, second = recorder.take(9.0, {"a": ["r"]}).stepped
    assert (first.first, first.latest) == ([1.0], [3.0])
    assert (second.first, second.latest) == ([7.0], [7.0])


def test_stage_that_goes_on_by_itself_waits_since_its_latest_step() -> None:
    recorder = Recorder("w", ["a"])
    took(recorder, "r", 1.0)
    recorder.stepped("a", ["r"], 2.0, 3.0)
    recorder.stepped("a", ["r"], 5.0, 6.0)
    _, second = recorder.take(9.0, {"a": ["r"]}).stepped
    assert (second.first, second.latest) == ([3.0], [3.0])


def test_requests_and_stages_do_not_mix() -> None:
    recorder = Recorder("w", ["a", "b"])
    took(recorder, "r", 1.0, "a")
    took(recorder, "s", 2.0, "a")
    took(recorder, "r", 3.0, "b")
    recorder.stepped("a", ["r", "s"], 5.0, 6.0)
    recorder.stepped("b", ["r"], 5.0, 6.0)
    one, other = recorder.take(9.0, {"a": ["r", "s"], "b": ["r"]}).stepped
    assert (one.requests, one.first) == (["r", "s"], [1.0, 2.0])
    assert (other.requests, other.first) == (["r"], [3.0])


def test_nothing_is_kept_of_requests_that_a_stage_no_longer_holds() -> None:
    recorder = Recorder("w", ["a"])
    for number in range(100):
        took(recorder, f"r{number}", 1.0)
        recorder.stepped("a", [f"r{number}"], 2.0, 3.0)
        took(recorder, f"r{number}", 4.0)
    recorder.take(5.0, {"a": ["r7"]})
    assert recorder._arrived["a"].keys() == recorder._worked["a"].keys() == {"r7"}


def test_many_notes_are_to_be_sent_and_each_is_given_once() -> None:
    recorder = Recorder("w", ["a"])
    while not recorder.many:
        took(recorder, "r", 1.0)
    assert len(recorder.take(2.0, {"a": []}).took) == MANY
    assert not recorder.many
    assert recorder.take(3.0, {"a": []}).took == []


def test_without_tracing_only_marked_requests_are_recorded() -> None:
    recorder = Recorder("w", ["a"], every=False)
    for request_id in ("r", f"s{MARK}"):
        took(recorder, request_id, 1.0)
    recorder.stepped("a", ["r", f"s{MARK}"], 5.0, 6.0)
    recorder.stepped("a", ["r"], 7.0, 8.0)
    notes = recorder.take(9.0, {"a": ["r", f"s{MARK}"]})
    [step] = notes.stepped
    assert [note.request_id for note in notes.took] == step.requests == [f"s{MARK}"]
    assert (step.first, step.others) == ([1.0], 1)
