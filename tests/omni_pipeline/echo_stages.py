"""Defines a graph of three stages that do not need torch. They split a text into words, turn each word into capitals,
and join the words again.

A word of the form ``TROUBLE@STAGE`` makes that stage misbehave. TROUBLE is the name of a method of `_Trouble`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from msgspec import Struct

from omni_pipeline.contract.graph import COLLECTOR, GATEWAY, Edge, Graph, StageSpec
from omni_pipeline.contract.stage import StageBroken, StageContext
from omni_pipeline.contract.stage_options import StageOptions
from omni_pipeline.errors import StartupError, bad_request
from omni_pipeline.wire.messages import Advice, Chunk, End, Failed, Start, Work
from omni_pipeline.wire.tensor import Tensor

# The duration of a slow operation.
LONG_SECONDS = 8.0


class Text(Struct):
    """The text of a request. `data` is returned unchanged in the answer."""

    text: str
    data: Tensor | None = None


class Word(Struct):
    """One word, and the ids of the processes that have handled it."""

    word: str
    pids: list[int]
    data: Tensor | None = None


class Answer(Struct):
    """The answer to a request: all words, joined to one text."""

    text: str
    pids: list[int]
    data: Tensor | None = None


class Options(StageOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The behaviour of a stage.

    Attributes:
        refuse: Raise a StartupError with this message instead of loading.
        crash: Raise a RuntimeError with this message instead of loading.
        crash_if: Raise a RuntimeError instead of loading while a file with this path exists.
        gate: A FIFO; the stage loads only after a test has opened it for writing.
        spawn: A shell command that the stage starts; its output goes to the worker's output.
    """

    refuse: str = ""
    crash: str = ""
    crash_if: str = ""
    gate: str = ""
    spawn: str = ""


class EchoStage:
    """The base class of the three stages. Messages wait in a queue, and each step handles one message."""

    def __init__(self, context: StageContext) -> None:
        options: Options = context.options
        if options.refuse:
            raise StartupError(options.refuse)
        if options.crash or os.path.exists(options.crash_if):
            raise RuntimeError(options.crash or "no luck today")
        if options.gate:
            with open(options.gate):
                pass
        if options.spawn:
            subprocess.Popen(["sh", "-c", options.spawn])
        self.name = context.name
        self.queue: deque[Work] = deque()
        self.requests: dict[str, list[Word]] = {}
        self.advised: list[str] = []
        self.closed = False
        self.batch: tuple[str, ...] = ()

    @property
    def has_work(self) -> bool:
        return bool(self.queue)

    def receive(self, message: Work) -> None:
        self.requests.setdefault(message.request_id, [])
        if f"refuse@{self.name}" in _words(message):
            raise bad_request("I do not say that.", param="text", code="rude")
        if f"stumble@{self.name}" in _words(message):
            raise RuntimeError("stumbled")
        self.queue.append(message)

    def advise(self, advice: Advice[Text]) -> None:
        self.advised.append(advice.body.text)

    def step(self) -> Iterable[Work | Failed | Advice[Text]]:
        message = self.queue.popleft()
        self.batch = (message.request_id,)
        for word in _words(message):
            trouble, _, where = word.partition("@")
            if where == self.name:
                yield from getattr(_Trouble, trouble)(message)
        yield from self.work(message)

    def work(self, message: Work) -> Iterable[Work]:
        raise NotImplementedError

    def abort(self, request_id: str) -> None:
        self.requests.pop(request_id, None)
        self.queue = deque(message for message in self.queue if message.request_id != request_id)

    def live(self) -> Collection[str]:
        return self.requests.keys()

    def stats(self) -> dict[str, float]:
        return {"queued_requests": float(len(self.queue))}

    def close(self) -> None:
        self.closed = True


class Split(EchoStage):
    """Receives a text, and sends a stream of its words."""

    def work(self, message: Work) -> Iterable[Work]:
        text: Text = message.body
        for word in text.text.split():
            yield Chunk(message.request_id, self.name, "shout", Word(word, [os.getpid()], text.data))
        yield End(message.request_id, self.name, "shout")
        del self.requests[message.request_id]


class Shout(EchoStage):
    """Receives a stream of words, and sends the same words in capitals."""

    def work(self, message: Work) -> Iterable[Work]:
        if isinstance(message, End):
            yield End(message.request_id, self.name, "join")
            del self.requests[message.request_id]
            return
        word: Word = message.body
        shouted = Word(word.word.upper() if "@" not in word.word else word.word, [*word.pids, os.getpid()], word.data)
        yield Chunk(message.request_id, self.name, "join", shouted)


class Join(EchoStage):
    """Receives a stream of words, and sends one answer."""

    def work(self, message: Work) -> Iterable[Work]:
        words = self.requests[message.request_id]
        if isinstance(message, Chunk):
            words.append(message.body)
            return
        text = " ".join(word.word for word in words)
        answer = Answer(text, [*words[0].pids, os.getpid()], words[0].data)
        yield Start(message.request_id, self.name, COLLECTOR, answer)
        del self.requests[message.request_id]


class _Trouble:
    """Defines the ways in which a stage can misbehave, one in each method."""

    @staticmethod
    def fail(message: Work) -> Iterable[Failed]:
        yield Failed(message.request_id, message.target, bad_request("Cannot say that.", code="unspeakable").info)

    @staticmethod
    def advise(message: Work) -> Iterable[Advice[Text]]:
        """Send an `Advice` message to the stage before this stage."""
        before = {"shout": "split", "join": "shout"}[message.target]
        yield Advice(message.target, before, Text(f"advice about {message.request_id}"))

    @staticmethod
    def crash(message: Work) -> Iterable[Work]:
        raise RuntimeError("told to crash")

    @staticmethod
    def broken(message: Work) -> Iterable[Work]:
        raise StageBroken("told to break")

    @staticmethod
    def die(message: Work) -> Iterable[Work]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    @staticmethod
    def spawn(message: Work) -> Iterable[Work]:
        subprocess.Popen(["sleep", "1000"])
        return []

    @staticmethod
    def litter(message: Work) -> Iterable[Work]:
        tempfile.mkdtemp()
        return []

    @staticmethod
    def hang(message: Work) -> Iterable[Work]:
        signal.pause()
        return []

    @staticmethod
    def spin(message: Work) -> Iterable[Work]:
        ctypes.CDLL(os.environ["SPINNING"]).spin()
        return []

    @staticmethod
    def spin_locked(message: Work) -> Iterable[Work]:
        ctypes.PyDLL(os.environ["SPINNING"]).spin()
        return []

    @staticmethod
    def compute(message: Work) -> Iterable[Work]:
        end = time.monotonic() + LONG_SECONDS
        while time.monotonic() < end:
            sum(range(1000))
        return []

    @staticmethod
    def compile(message: Work) -> Iterable[Work]:
        subprocess.run(["timeout", str(LONG_SECONDS), "sh", "-c", "while :; do :; done"], check=False)
        return []

    @staticmethod
    def rest(message: Work) -> Iterable[Work]:
        time.sleep(0.05)
        return []

    @staticmethod
    def doze(message: Work) -> Iterable[Work]:
        time.sleep(LONG_SECONDS)
        return []

    @staticmethod
    def misdirect(message: Work) -> Iterable[Work]:
        yield Chunk(message.request_id, message.target, "nowhere", None)

    @staticmethod
    def smuggle(message: Work) -> Iterable[Work]:
        yield Chunk(message.request_id, message.target, "join", Word("", [object()]))  # type: ignore[list-item]

    @staticmethod
    def mistype(message: Work) -> Iterable[Work]:
        yield Chunk(message.request_id, message.target, "join", {"wrong": "body"})


def _words(message: Work) -> list[str]:
    body: Any = message.body
    if isinstance(body, Text):
        return body.text.split()
    return [body.word] if isinstance(body, Word) else []


_HERE = "tests.omni_pipeline.echo_stages"

ECHO = Graph(
    name="echo",
    entry="split",
    stages=(
        StageSpec("split", f"{_HERE}:Split", Options, preload=("decimal",)),
        StageSpec("shout", f"{_HERE}:Shout", Options, accelerated=True, parallel=True, prefix_cache="words"),
        StageSpec("join", f"{_HERE}:Join", Options, accelerated=True, usual_gpu=1, fills_memory=True),
    ),
    edges=(
        Edge(GATEWAY, "split", Text),
        Edge("split", "shout", Word),
        Edge("shout", "join", Word),
        Edge("join", COLLECTOR, Answer),
    ),
    advice=(Edge("shout", "split", Text), Edge("join", "shout", Text)),
)

# The dotted path of `ECHO`, for configurations.
ECHO_PATH = f"{_HERE}:ECHO"
