"""Interrupts answers of realtime sessions at random moments, and checks that no data of the sessions remains in the
server.

    sgl-omni serve --model-path checkpoints/tiny --port 8008     # in another terminal
    python scripts/interrupt.py --url http://127.0.0.1:8008 --count 1000

Each session begins an answer and interrupts the answer after a random time: with `response.cancel`, by speech, or by
closing the connection. If the connection is still open, the session truncates the interrupted answer at a random time,
and deletes the question and the answer. Then the session asks a question whose answer is known, because a session
without interruptions has asked the same question before. The text and the sound of both answers must be equal. At the
end, no data of the sessions may remain in the server. The script also prints how long the workers needed to free the
data of an aborted request, and how long a step of each stage takes. (A worker frees the data only after the step that
it is computing at that moment.)

The same seed makes the same interruptions. The exit status is 1 if an answer was wrong, or if data remained.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import random
import sys
import time
import wave
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy
import soxr
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

QUESTIONS = ("Who are you?", "How many cars are there?", "Hello", "What is this?")
WAYS = ("cancel", "speak", "leave")
LONGEST_WAIT = 0.8  # maximum seconds from the request for an answer to the interruption
PATIENCE = 60.0
SPEECH = Path(__file__).parents[1] / "tests" / "data" / "query_to_cars.wav"
GAUGES = ("omni_realtime_sessions", "omni_requests_in_flight", "omni_held_bytes", "omni_decoded_bytes")

Answer = tuple[str, str]
"""The text of an answer, and a hash of its sound."""


class Session:
    """One open session."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send_str(json.dumps({"type": kind, **fields}))

    async def until(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of these kinds. Raises ValueError if an error event comes first, unless ``error`` is
        one of these kinds.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                event: dict[str, Any] = await self._socket.receive_json()
                if event["type"] in kinds:
                    return event
                if event["type"] == "error":
                    raise ValueError(f"an unexpected error: {event['error']}")

    async def prepare(self) -> None:
        """Configure the session: the answers are greedy, and the server does not answer speech by itself."""
        stages = {"talker_ar": {"temperature": 0, "max_tokens": 40}}
        detection = {"type": "server_vad", "create_response": False}
        audio = {"input": {"turn_detection": detection}}
        await self.send("session.update", session={"audio": audio, "max_output_tokens": 24, "stage_sampling": stages})
        await self.until("session.updated")

    async def ask(self, text: str) -> str:
        """Add a question, and ask for its answer. Returns the id of the question."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        item_id: str = (await self.until("conversation.item.done"))["item"]["id"]
        await self.send("response.create")
        await self.until("response.created")
        return item_id

    async def hear(self) -> tuple[Answer, list[str]]:
        """Receive a whole answer. Returns the answer and the ids of its items."""
        text, sound = "", b""
        while True:
            event = await self.until(
                "response.output_audio_transcript.delta",
                "response.output_text.delta",
                "response.output_audio.delta",
                "response.done",
            )
            if event["type"] == "response.done":
                status = event["response"]["status"]
                if status not in ("completed", "incomplete"):
                    raise ValueError(f"a response ended with status {status}: {event['response']['status_details']}")
                return (text, hashlib.sha256(sound).hexdigest()), [item["id"] for item in event["response"]["output"]]
            if event["type"] == "response.output_audio.delta":
                sound += base64.b64decode(event["delta"])
            else:
                text += event["delta"]

    async def interrupt(self, way: str, speech: str) -> list[dict[str, Any]]:
        """Interrupt the answer with `response.cancel` or by speech. Returns the items of the answer."""
        done: dict[str, Any] = {}
        wanted = {"response.done"}
        if way == "cancel":
            await self.send("response.cancel")
        else:
            await self.send("input_audio_buffer.append", audio=speech)
            wanted.add("input_audio_buffer.speech_started")
        while wanted:  # the answer may end before the speech is noticed
            event = await self.until(*wanted)
            wanted.remove(event["type"])
            done = event if event["type"] == "response.done" else done
        if way == "cancel" and done["response"]["status"] != "cancelled":
            await self.send("input_audio_buffer.clear")
            await self._until_cancel_is_answered()
        else:
            await self.send("input_audio_buffer.clear")
            await self.until("input_audio_buffer.cleared")
        items: list[dict[str, Any]] = done["response"]["output"]
        return items

    async def forget(self, item_ids: list[str]) -> None:
        """Delete items."""
        for item_id in item_ids:
            await self.send("conversation.item.delete", item_id=item_id)
            await self.until("conversation.item.deleted")

    async def truncate(self, item_id: str, milliseconds: int) -> None:
        await self.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=milliseconds)
        await self.until("conversation.item.truncated")

    async def _until_cancel_is_answered(self) -> None:
        """Wait until the server has cleared the input audio buffer. Ignore the error that the server sends if
        `response.cancel` arrived after the end of the response.
        """
        while True:
            event = await self.until("error", "input_audio_buffer.cleared")
            if event["type"] == "input_audio_buffer.cleared":
                return
            if event["error"]["code"] != "response_cancel_not_active":
                raise ValueError(f"an unexpected error: {event['error']}")


class Trial:
    """The sessions of one run, and the errors found in them.

    Args:
        http: Opens the WebSocket connections.
        url: The address of the server.
        numbers: Yields one number for each interruption to make. The number and the seed determine the random choices
            of the interruption.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, numbers: Iterator[int], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._http = http
        self._url = url
        self._numbers = numbers
        self._seed = seed
        self._speech = base64.b64encode(spoken()).decode()
        self._right: dict[str, Answer] = {}

    async def learn(self) -> None:
        """Get the answer to each question, in a separate session for each question."""
        for question in QUESTIONS:
            async with self._connect() as socket:
                session = Session(socket)
                await session.prepare()
                await session.ask(question)
                self._right[question], _ = await session.hear()

    async def interrupt(self) -> None:
        """Make interruptions until all of them are made. After a failure, a new session continues."""
        going = True
        while going:
            try:
                async with self._connect() as socket:
                    going = await self._converse(socket)
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

    async def times(self) -> str:
        """How long the workers needed to free the data of aborted requests, and how long the stages' steps took."""
        async with self._http.get(f"{self._url}/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
        aborts = _quantiles(families, "omni_abort_seconds", {})
        steps = {
            stage: _quantiles(families, "omni_stage_step_seconds", {"stage": stage})
            for stage in ("thinker", "talker_ar", "code_predictor", "code2wav")
        }
        lines = [f"freed after an abort: {aborts}", *(f"a step of {stage}: {found}" for stage, found in steps.items())]
        return "\n".join(lines)

    async def check_empty(self) -> None:
        """Add an error if data of the sessions remains in the server."""
        held: dict[str, float] = {}
        for _ in range(100):
            async with self._http.get(f"{self._url}/metrics") as response:
                lines = [line.split() for line in (await response.text()).splitlines()]
            held = {line[0]: float(line[1]) for line in lines if len(line) == 2 and line[0] in GAUGES}
            async with self._http.get(f"{self._url}/health") as response:
                stages = (await response.json())["stages"]
            held |= {f"requests in {name}": float(stage["live_requests"]) for name, stage in stages.items()}
            if not any(held.values()):
                return
            await asyncio.sleep(0.1)
        self.wrong.append(f"the server still has data: {held}")

    def _connect(self) -> Any:
        return self._http.ws_connect(f"{self._url}/v1/realtime", max_msg_size=0)

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse) -> bool:
        """Interrupt answers in one session. Returns True if the last interruption closed the connection, and False if
        no interruption is left.
        """
        session = Session(socket)
        await session.prepare()
        for number in self._numbers:
            draw = random.Random(f"{self._seed}:{number}")
            way = draw.choice(WAYS)
            self.counts[way] += 1
            question = await session.ask(draw.choice(QUESTIONS))
            await asyncio.sleep(draw.uniform(0, LONGEST_WAIT))
            if way == "leave":
                connection = socket._response.connection
                if connection is not None and connection.transport is not None:
                    connection.transport.abort()
                return True
            items = await session.interrupt(way, self._speech)
            for item in items:
                await session.truncate(item["id"], draw.randrange(3_000))
            await session.forget([question, *(item["id"] for item in items)])
            await self._check_answer(session, number, draw.choice(QUESTIONS))
        return False

    async def _check_answer(self, session: Session, number: int, question: str) -> None:
        question_id = await session.ask(question)
        answer, item_ids = await session.hear()
        self.counts["answers"] += 1
        if answer != self._right[question]:
            what = "text" if answer[0] != self._right[question][0] else "sound"
            self.wrong.append(f"after interruption {number}: another {what} to '{question}': {answer[0]!r}")
        await session.forget([question_id, *item_ids])


def spoken() -> bytes:
    """Speech without silence at its beginning: 0.6 s of pcm16 at 24 kHz."""
    with wave.open(str(SPEECH)) as file:
        rate, samples = file.getframerate(), numpy.frombuffer(file.readframes(file.getnframes()), "<i2")
    sound = soxr.resample(samples, rate, 24_000).astype("<i2")
    first = int(numpy.flatnonzero(numpy.abs(sound) > 1_000)[0])
    return bytes(sound[first : first + 14_400].tobytes())


def _quantiles(families: list[Metric], name: str, labels: dict[str, str]) -> str:
    """The p50, p90 and p99 of a histogram, each as the upper bound of the bucket that contains it."""
    buckets: Counter[float] = Counter()
    for family in families:
        for sample in family.samples:
            if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items():
                buckets[float(sample.labels["le"])] += int(sample.value)
    total = max(buckets.values(), default=0)
    if not total:
        return "never"
    found = [min(bound for bound, count in buckets.items() if count >= part * total) for part in (0.5, 0.9, 0.99)]
    return " / ".join(f"≤ {1000 * bound:g}" for bound in found) + f" ms (p50 / p90 / p99 of {total})"


async def run(options: argparse.Namespace) -> int:
    """Interrupt, and print what was found. Returns the exit status."""
    began = time.monotonic()
    async with aiohttp.ClientSession() as http:
        trial = Trial(http, options.url, iter(range(options.first, options.first + options.count)), options.seed)
        await trial.learn()
        await asyncio.gather(*(trial.interrupt() for _ in range(options.sessions)))
        await trial.check_empty()
        times = await trial.times()
    counts = ", ".join(f"{count} × {what}" for what, count in sorted(trial.counts.items()))
    print(f"{counts} in {time.monotonic() - began:.0f} s; {len(trial.wrong)} findings")
    print(times)
    for finding in trial.wrong[:20]:
        print(f"  {finding}")
    return 1 if trial.wrong else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8008", help="address of the server (%(default)s)")
    parser.add_argument("--count", type=int, default=1_000, help="number of interruptions (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first interruption (%(default)s)")
    parser.add_argument("--sessions", type=int, default=4, help="number of sessions at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    return asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
