"""The worker loop delivers and sends messages, and fails and forgets requests. The tests run it in a thread with real
sockets.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY
from omni_pipeline.contract.stage import StageBroken, StageContext
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import (
    Abort,
    Advice,
    Chunk,
    Claim,
    End,
    Failed,
    Forgotten,
    Granted,
    Heartbeat,
    Message,
    Paused,
    Shutdown,
    Start,
    Work,
)
from omni_pipeline.wire.tensor import Tensor
from omni_pipeline.wire.trace_notes import Notes
from omni_pipeline.wire.transport import MAIN, Inbox, Outbox, endpoint
from omni_pipeline.worker.loop import TOMBSTONES, WorkerLoop
from omni_pipeline.worker.routing import Routing
from tests.omni_pipeline.echo_stages import ECHO, EchoStage, Join, Options, Shout, Split, Text, Word

SECONDS = 10.0


def context_of(name: str) -> StageContext:
    return StageContext(name, "no/checkpoint", "cpu", Options(), frozenset(ECHO.stage_names), "/nowhere")


def echo(*names: str) -> dict[str, EchoStage]:
    kinds = {"split": Split, "shout": Shout, "join": Join}
    return {name: kinds[name](context_of(name)) for name in names or kinds}


class Bench:
    """A worker in a thread. The test takes the places of the main process and of all other workers."""

    def __init__(self, stages: dict[str, EchoStage], run_dir: Path, parent: int = os.getppid()) -> None:
        self.stages = stages
        self.error: BaseException | None = None
        self.codec = Codec(ECHO.body_types(), ECHO.advice_types())
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.home = Inbox(self.context, endpoint(str(run_dir), MAIN, 0))
        self.elsewhere = Inbox(self.context, endpoint(str(run_dir), "elsewhere", 0))
        self.outbox = Outbox(self.context)
        self.inbox = Inbox(self.context, endpoint(str(run_dir), "w", 0))
        self.address = self.inbox.address
        addresses = {name: {0: self.elsewhere.address} for name in ECHO.stage_names if name not in stages}
        self.worker = WorkerLoop(
            "w",
            stages,
            Routing(addresses, self.home.address),
            inbox=self.inbox,
            outbox=Outbox(self.context),
            codec=Codec(ECHO.body_types(), ECHO.advice_types()),
            parent=parent,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error

    def start(self) -> None:
        self.thread.start()

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.outbox.send(self.address, self.codec.encode(message))

    def next(self, inbox: Inbox | None = None) -> Message:
        """The next message for the main process (or another inbox), without heartbeats and answers to aborts."""
        while True:
            message = self.next_of_any_kind(inbox)
            if not isinstance(message, Heartbeat | Notes | Forgotten):
                return message

    def forgotten(self) -> Forgotten:
        """The next answer to an abort."""
        while True:
            message = self.next_of_any_kind()
            if isinstance(message, Forgotten):
                return message

    def next_of_any_kind(self, inbox: Inbox | None = None) -> Message:
        inbox = inbox or self.home
        assert inbox.wait(SECONDS)
        received = inbox.receive()
        assert received is not None
        return self.codec.decode(received.frames)

    def join(self) -> None:
        """Wait until the loop ends by itself."""
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()

    def close(self) -> None:
        if self.thread.is_alive():
            self.send(Shutdown())
            self.join()
        for inbox in (self.home, self.elsewhere, self.inbox):
            inbox.close()
        self.context.destroy(linger=0)


@pytest.fixture
def bench(run_root: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A worker. It runs the stages that the test gives as the parameter of this fixture. If there is no parameter, the
    worker runs all three stages.
    """
    bench = Bench(echo(*getattr(request, "param", ())), run_root)
    bench.start()
    yield bench
    bench.close()


def ask(text: str, request_id: str = "r", data: Tensor | None = None) -> Start[Text]:
    return Start(request_id, GATEWAY, "split", Text(text, data))


def answer(bench: Bench) -> str:
    message = bench.next()
    assert isinstance(message, Start), message
    text: str = message.body.text
    return text


def test_message_goes_through_every_stage_of_the_worker(bench: Bench) -> None:
    bench.send(ask("one two"))
    assert answer(bench) == "ONE TWO"


def test_requests_in_flight_together_keep_apart(bench: Bench) -> None:
    bench.send(*(ask(f"word{number} again", f"r{number}") for number in range(50)))
    assert {answer(bench) for _ in range(50)} == {f"WORD{number} AGAIN" for number in range(50)}


class Outside(EchoStage):
    """The last stage of the graph, whose work is done outside of the worker: the result comes through a socket."""

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self.ours, self.theirs = socket.socketpair()
        self.looks = 0

    @property
    def waits_on(self) -> int:
        return self.ours.fileno()

    @property
    def has_work(self) -> bool:
        self.looks += 1
        return bool(select.select([self.ours], [], [], 0)[0])

    def step(self) -> Iterable[Work]:
        self.ours.recv(1)
        self.batch = (self.queue.popleft().request_id,)
        yield Start(*self.batch, self.name, COLLECTOR, None)


def test_loop_sleeps_until_the_process_that_works_for_a_stage_answers(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni_pipeline.worker.loop.HEARTBEAT_SECONDS", 3600.0)
    stage = Outside(context_of("join"))
    bench = Bench({"join": stage}, run_root)
    bench.start()
    try:
        for number in range(3):
            bench.send(Start(f"r{number}", "shout", "join", Word("x", [])))
            while not stage.queue:
                time.sleep(0.01)
            looks = stage.looks
            stage.theirs.send(b"x")
            assert bench.next().request_id == f"r{number}"
            assert looks < 10 * (number + 1)
    finally:
        bench.close()
        stage.ours.close()
        stage.theirs.close()


class Keeps(EchoStage):
    """The last stage of the graph. It keeps the body that it has received."""

    def work(self, message: Work) -> Iterable[Work]:
        self.kept: Any = message.body
        yield Start(message.request_id, self.name, COLLECTOR, None)


class Sends(EchoStage):
    """The first stage of the graph. It keeps the body that it has sent."""

    def work(self, message: Work) -> Iterable[Work]:
        self.gave = Word("x", [], Tensor.of(torch.zeros(3)))
        yield Start(message.request_id, self.name, "join", self.gave)


def test_stages_of_one_worker_pass_bodies_by_reference(run_root: Path) -> None:
    stages: dict[str, EchoStage] = {"split": Sends(context_of("split")), "join": Keeps(context_of("join"))}
    bench = Bench(stages, run_root)
    bench.start()
    bench.send(ask("x"))
    bench.next()
    bench.close()
    assert stages["join"].kept is stages["split"].gave  # type: ignore[attr-defined]


@pytest.mark.parametrize("bench", [["split"]], indirect=True)
def test_stream_to_another_worker_is_numbered_and_closed(bench: Bench) -> None:
    bench.send(ask("a b"))
    first, second, last = (bench.next(bench.elsewhere) for _ in range(3))
    assert isinstance(first, Chunk)
    assert isinstance(second, Chunk)
    assert isinstance(last, End)
    assert (first.seq, second.seq, last.count) == (0, 1, 2)


@pytest.mark.parametrize("bench", [["join"]], indirect=True)
@pytest.mark.parametrize(
    "message",
    [Chunk("r", "shout", "join", Word("x", []), seq=1), End("r", "shout", "join", None, count=1)],
    ids=["chunk lost before", "all lost"],
)
def test_gap_in_a_stream_fails_the_request_at_once(bench: Bench, message: Message) -> None:
    bench.send(message)
    failed = bench.next()
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.error.stage) == ("stream_gap", "join")


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("fail@shout", 400, "unspeakable"),
        ("refuse@split", 400, "rude"),
        ("refuse@join", 400, "rude"),
        ("stumble@shout", 500, "internal_error"),
        ("crash@shout", 500, "internal_error"),
        ("misdirect@split", 500, "internal_error"),
    ],
)
def test_failure_ends_its_request_with_the_stage_that_found_it(bench: Bench, text: str, status: int, code: str) -> None:
    bench.send(ask(f"before {text} after"))
    failed = bench.next()
    assert isinstance(failed, Failed)
    assert (failed.error.status, failed.error.code) == (status, code)
    assert failed.error.stage == failed.source == text.partition("@")[2]


@pytest.mark.parametrize("bench", [["shout"]], indirect=True)
def test_body_that_cannot_travel_fails_its_request(bench: Bench) -> None:
    bench.send(Chunk("r", "split", "shout", Word("smuggle@shout", []), seq=0))
    failed = bench.next()
    assert isinstance(failed, Failed)
    assert (failed.error.status, failed.error.stage) == (500, "shout")


def test_failed_request_is_forgotten_everywhere_and_answered_once(bench: Bench) -> None:
    bench.send(ask("one fail@join two"), ask("fine", "s"))
    assert isinstance(bench.next(), Failed)
    assert answer(bench) == "FINE"
    bench.close()
    assert [stage.live() for stage in bench.stages.values()] == [set(), set(), set()]


def test_crash_in_a_step_fails_all_that_the_stage_holds_and_nothing_else(run_root: Path) -> None:
    bench = Bench(echo("shout"), run_root)
    held = Chunk("held", "split", "shout", Word("x", []), seq=0)
    bench.send(held, Chunk("r", "split", "shout", Word("crash@shout", []), seq=0))
    bench.start()  # the worker starts only now, so that the stage holds both messages when it crashes
    failed = [bench.next(), bench.next()]
    assert all(isinstance(message, Failed) for message in failed)
    assert {message.request_id for message in failed} == {"held", "r"}  # type: ignore[union-attr]
    bench.send(Chunk("s", "split", "shout", Word("x", []), seq=0))
    # this message belongs to the request that the stage held before the crash
    assert isinstance(bench.next(bench.elsewhere), Chunk)
    later = bench.next(bench.elsewhere)
    assert isinstance(later, Chunk)
    assert later.request_id == "s"
    bench.close()


def test_broken_stage_fails_its_requests_and_ends_the_loop(bench: Bench) -> None:
    bench.send(ask("broken@split"))
    assert isinstance(bench.next(), Failed)
    bench.join()
    assert isinstance(bench.error, StageBroken)


def test_abort_frees_every_stage(bench: Bench) -> None:
    bench.send(Chunk("r", "shout", "join", Word("x", []), seq=0), ask("sync", "s"))
    assert answer(bench) == "SYNC"
    assert "r" in bench.stages["join"].live()
    bench.send(Abort("r"), ask("sync", "t"))
    assert answer(bench) == "SYNC"
    assert "r" not in bench.stages["join"].live()


@pytest.mark.parametrize("bench", [["join"]], indirect=True)
def test_late_messages_of_an_aborted_request_are_dropped_and_counted(bench: Bench) -> None:
    bench.send(Abort("r"))
    bench.send(
        *(Chunk("r", "shout", "join", Word("x", []), seq=number) for number in range(3)), End("r", "shout", "join")
    )
    while True:
        beat = bench.next_of_any_kind()
        if isinstance(beat, Forgotten | Notes):
            continue
        assert isinstance(beat, Heartbeat), "an aborted request is neither answered nor failed"
        if beat.stats["join"].dropped_late:
            break
    assert (beat.stats["join"].dropped_late, beat.stats["join"].received, beat.stats["join"].live_requests) == (4, 0, 0)


class Busy(EchoStage):
    """A stage with a step that lasts until the test ends it, and that keeps aborted requests until the next step."""

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.aborted: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self.queue or self.aborted)

    def abort(self, request_id: str) -> None:
        if request_id in self.requests:
            self.aborted.add(request_id)

    def step(self) -> Iterable[Work]:
        for request_id in self.aborted:
            super().abort(request_id)
        self.aborted.clear()
        if self.queue:
            self.queue.popleft()
            self.begun.set()
            assert self.may_end.wait(SECONDS)
        return []


def test_abort_is_answered_after_the_step_in_which_the_stage_lets_go(run_root: Path) -> None:
    stage = Busy(context_of("join"))
    bench = Bench({"join": stage}, run_root)
    bench.start()
    bench.send(Chunk("r", "shout", "join", Word("x", []), seq=0))
    assert stage.begun.wait(SECONDS)
    bench.send(Abort("r"))
    assert not bench.home.wait(0.2) or isinstance(bench.next_of_any_kind(), Heartbeat | Notes)
    stage.may_end.set()
    assert bench.forgotten() == Forgotten("r", "w", "")
    assert stage.live() == set()
    bench.close()


class Clings(EchoStage):
    """A stage that keeps an aborted request. Only the test removes the request from the stage."""

    def abort(self, request_id: str) -> None:
        """Do nothing yet."""


def test_abort_is_not_answered_while_a_stage_still_holds_the_request(run_root: Path) -> None:
    stage = Clings(context_of("join"))
    stage.requests["r"] = []
    bench = Bench({"join": stage}, run_root)
    bench.start()
    bench.send(Abort("r"), Abort("s"))
    assert bench.forgotten().request_id == "s"
    del stage.requests["r"]
    assert bench.forgotten().request_id == "r"
    bench.close()


@pytest.mark.parametrize("bench", [["split"]], indirect=True)
def test_abort_is_passed_on_behind_what_the_worker_has_sent(bench: Bench) -> None:
    bench.send(ask("a b"), Abort("r"))
    passed = [bench.next(bench.elsewhere)]
    while not isinstance(passed[-1], Abort):
        passed.append(bench.next(bench.elsewhere))
    assert passed[-1] == Abort("r", sender="w")
    assert bench.forgotten() == Forgotten("r", "w", "")
    bench.send(Abort("s", sender="elsewhere"), ask("sync", "t"))
    assert bench.forgotten() == Forgotten("s", "w", "elsewhere")
    assert isinstance(bench.next(bench.elsewhere), Chunk), "an abort from another worker goes no further"


class Claims(EchoStage):
    """The first stage of the graph. Before it handles a word, it sends a `Claim` message. The message asks for a
    kilobyte of memory for each letter of the word.
    """

    def step(self) -> Iterable[Work | Claim]:
        message = self.queue.popleft()
        self.asked = getattr(self, "asked", {}) | {message.request_id: message}
        yield Claim(message.request_id, self.name, 1000 * len(message.body.text), 0)

    def grant(self, request_id: str) -> None:
        self.granted = [*getattr(self, "granted", []), request_id]


def test_claim_goes_to_the_main_process_and_the_grant_to_the_stage(run_root: Path) -> None:
    stage = Claims(context_of("split"))
    bench = Bench({"split": stage, **echo("join")}, run_root)
    bench.start()
    bench.send(ask("four"), ask("to", "s"))
    assert [bench.next(), bench.next()] == [Claim("r", "split", 4000, 0), Claim("s", "split", 2000, 0)]
    bench.send(Granted("s", "split"), Granted("r", "join"), Abort("s"))
    bench.forgotten()
    assert stage.granted == ["s"], "a stage that claims nothing is not asked to take a grant"
    bench.close()


class Pauses(Claims):
    """The first stage of the graph. It pauses before it handles a word."""

    def step(self) -> Iterable[Work | Paused]:
        yield Paused(self.queue.popleft().request_id, self.name)


def test_pause_goes_to_the_main_process_and_the_answer_to_the_stage(run_root: Path) -> None:
    stage = Pauses(context_of("split"))
    bench = Bench({"split": stage, **echo("join")}, run_root)
    bench.start()
    bench.send(ask("four"))
    assert bench.next() == Paused("r", "split")
    bench.send(Granted("r", "split"), Abort("r"))
    bench.forgotten()
    assert stage.granted == ["r"]
    bench.close()


def test_tombstones_are_bounded(bench: Bench) -> None:
    bench.send(*(Abort(f"r{number}") for number in range(TOMBSTONES + 5)), ask("r0 may come again", "r0"))
    assert answer(bench) == "R0 MAY COME AGAIN"


def test_heartbeat_tells_what_each_stage_has_done(bench: Bench) -> None:
    bench.send(ask("a b c"))
    answer(bench)
    while True:
        beat = bench.next_of_any_kind()
        if isinstance(beat, Heartbeat) and beat.stats["join"].sent:
            break
    split, shout = beat.stats["split"], beat.stats["shout"]
    assert (split.received, split.sent, split.steps, split.live_requests) == (1, 4, 1, 0)
    assert (shout.received, shout.sent, shout.steps, shout.extra) == (4, 4, 4, {"queued_requests": 0.0})
    assert shout.busy_seconds > 0


@pytest.mark.parametrize("bench", [["join"]], indirect=True)
def test_unreadable_body_fails_its_request(bench: Bench) -> None:
    bench.send(Chunk("r", "shout", "join", {"wrong": "body"}, seq=0))
    failed = bench.next()
    assert isinstance(failed, Failed)
    assert (failed.request_id, failed.error.status) == ("r", 500)


@pytest.mark.parametrize("bench", [["join"]], indirect=True)
def test_message_for_nobody_here_is_logged_and_does_no_harm(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        bench.outbox.send(bench.address, [b"\xc1"])
        bench.send(
            ask("for split"), Chunk("s", "shout", "join", Word("X", [1]), seq=0), End("s", "shout", "join", count=1)
        )
        assert answer(bench) == "X"
    beginnings = [record.message.split(":")[0] for record in caplog.records]
    assert beginnings == ["unreadable message", "received a message for another process"]


def test_shutdown_ends_the_loop(bench: Bench) -> None:
    bench.send(Shutdown())
    bench.join()
    assert bench.error is None


def test_end_of_the_parent_ends_the_loop(run_root: Path) -> None:
    bench = Bench(echo(), run_root, parent=1 if os.getppid() != 1 else 2)
    bench.start()
    bench.join()
    bench.close()


# --- order of work ----------------------------------------------------------------------------------------------------


def test_advice_reaches_a_stage_of_the_same_worker(bench: Bench) -> None:
    bench.send(ask("please advise@join", "r1"))
    while not isinstance(message := bench.next(), End | Start):
        pass
    assert message.body.text == "PLEASE advise@join"
    bench.send(Shutdown())
    bench.join()
    assert bench.stages["shout"].advised == ["advice about r1"]


@pytest.mark.parametrize("bench", [["shout"]], indirect=True)
def test_advice_goes_to_the_worker_of_its_stage_and_comes_from_there(bench: Bench) -> None:
    bench.send(Advice("join", "shout", Text("hurry")))
    bench.send(Start("r1", "split", "shout", Word("advise@shout", [])))
    assert bench.next(bench.elsewhere) == Advice("shout", "split", Text("advice about r1"))
    bench.send(Shutdown())
    bench.join()
    assert bench.stages["shout"].advised == ["hurry"]


@pytest.mark.parametrize("bench", [["shout"]], indirect=True)
def test_advice_for_a_stage_of_another_worker_is_not_taken(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.send(Advice("shout", "split", Text("lost")), Start("r1", "split", "shout", Word("still", [])))
    assert isinstance(bench.next(bench.elsewhere), Chunk)
    assert "received a message for another process: Advice" in caplog.text


class Alarm(Shout):
    """Has work from the time `wakes_at` on, without any message."""

    wakes_at: float | None = None
    rang = False

    @property
    def has_work(self) -> bool:
        return bool(self.queue) or (self.wakes_at is not None and time.monotonic() >= self.wakes_at)

    def step(self) -> Iterable[Any]:
        if self.queue:
            return super().step()
        self.wakes_at, self.rang = None, True
        return [Advice("shout", "split", Text("rang"))]


def test_a_stage_gets_work_because_time_passes(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the loop ignored the time, it would sleep until its next heartbeat, which is 1000 s later in this test."""
    monkeypatch.setattr("omni_pipeline.worker.loop.HEARTBEAT_SECONDS", 1000.0)
    stage = Alarm(context_of("shout"))
    bench = Bench({"shout": stage}, run_root)
    stage.wakes_at = time.monotonic() + 0.2
    bench.start()
    try:
        assert bench.next(bench.elsewhere) == Advice("shout", "split", Text("rang"))
        assert stage.rang
    finally:
        bench.close()


class Worked(Shout):
    """Has work for some steps, and writes each step into a common list."""

    def __init__(self, name: str, steps: list[str], count: int) -> None:
        super().__init__(context_of(name))
        self._steps = steps
        self._left = count
        self.done = threading.Event()

    @property
    def has_work(self) -> bool:
        return self._left > 0

    def step(self) -> Iterable[Any]:
        self._steps.append(self.name)
        self._left -= 1
        if not self._left:
            self.done.set()
        return []


class Patient(Worked):
    patient = True


class Urgent(Worked):
    urgent = True


@pytest.mark.parametrize(
    ("patient", "urgent", "order"),
    [
        (True, True, "join shout join " * 4 + "shout shout shout shout"),
        (False, True, "shout join " * 8),
        (True, False, "shout join " * 8),
    ],
)
def test_patient_stage_waits_some_rounds_for_an_urgent_one(
    run_root: Path, patient: bool, urgent: bool, order: str
) -> None:
    steps: list[str] = []
    first, second = Patient("shout", steps, 8), Urgent("join", steps, 8)
    first.patient, second.urgent = patient, urgent
    stages: dict[str, Any] = {"shout": first, "join": second}
    bench = Bench(stages, run_root)
    bench.start()
    try:
        assert all(stage.done.wait(SECONDS) for stage in stages.values())
    finally:
        bench.close()
    assert steps == order.split()
