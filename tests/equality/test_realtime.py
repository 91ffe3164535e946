"""A spoken conversation over a WebSocket equals the same conversation in the reference. The tests compare text and
samples of all answers. They run with and without the preparation of answers in pauses, and with one and eight sessions
at once.

For each answer, the reference gets the whole conversation again. In this conversation, the reference's own earlier
answers have the ids that the reference generated.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest

from gateway.realtime.items.conversation import SoundContent
from gateway.realtime.sounds.input_buffer import InputBuffer, sound_of
from tests.equality import media
from tests.equality.test_spoken import TOLERANCE
from tests.gateway.realtime.talking import Talk, encoded, sound_in, sound_of_file, talking, text_in
from tests.reference import NEAR_TIE, Conversation, Spoken, SpokenReference
from tests.server import Server

TOKENS, FRAMES = 16, 20
VOICES = ("ethan", "chelsie")
SESSIONS = 8
RATE = 24_000  # Hz, the sound of the client
PART = int(8.3 * RATE) * 2  # bytes of sound that complete a window of eight seconds
LONGEST = 2  # the index of the answer to the longest question
WINDOW_ROWS = 104
TOOL = {"name": "look", "description": "Looks again.", "parameters": {"type": "object", "properties": {}}}
RESULT = "There are three cars."


@dataclass
class Heard:
    """One answer, and the conversation before it.

    Attributes:
        messages: The conversation before the answer, in the format of Hugging Face. The text of an earlier answer may
            be cut.
        text, samples: The answer; the samples are int16.
        cached_tokens: Number of tokens of the prompt that were in the prefix cache.
    """

    messages: list[dict[str, Any]]
    text: str
    samples: numpy.ndarray
    cached_tokens: int


@dataclass
class Script:
    """The media of one conversation.

    Attributes:
        questions: The sounds of the three spoken turns: pcm16 at 24 kHz that begins and ends with speech.
        picture: A PNG file.
        pushed: The sound of a turn that ends with a commit.
        cut_ms: The length of the part of the third answer that was heard, in milliseconds.
    """

    voice: str
    questions: list[bytes]
    picture: Path
    pushed: bytes
    cut_ms: int


@dataclass
class Speaker:
    """The client of one session. It follows a script, and records the conversation for the reference."""

    talk: Talk
    script: Script
    directory: Path
    buffer: InputBuffer = field(default_factory=lambda: InputBuffer("audio/pcm"))
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Heard] = field(default_factory=list)

    async def follow(self) -> list[Heard]:
        """Hold the whole conversation. Returns the answers."""
        script = self.script
        stages = {"talker_ar": {"temperature": 0, "max_tokens": FRAMES + 1}}
        output = {"voice": script.voice}
        session = {"tools": [{"type": "function"} | TOOL], "max_output_tokens": TOKENS, "stage_sampling": stages}
        await self.talk.send("session.update", session={"type": "realtime", "audio": {"output": output}} | session)
        await self.talk.until("session.updated")
        await self.ask_aloud(script.questions[0])
        await self.show(script.picture)
        await self.ask_aloud(script.questions[1])
        await self.ask_aloud(script.questions[2])
        await self.stop_listening(script.cut_ms)
        await self.call()
        await self.answer(await self.talk.respond())
        await self.push(script.pushed)
        await self.answer(await self.talk.respond())
        await self.talk.say("And now?")
        self.write("user", {"type": "text", "text": "And now?"})
        await self.answer(await self.talk.respond())
        return self.answers

    async def ask_aloud(self, question: bytes) -> None:
        """Speak, pause, and be silent until the answer has arrived."""
        begin = len(self.talk.seen)
        await self.send(silence(0.5))
        for start in range(0, len(question), PART):
            await self.send(question[start : start + PART])
            if start + PART < len(question):
                # during this time, the server computes the part of the question that it has received
                await asyncio.sleep(1.5)
        await self.send(silence(0.3))
        await asyncio.sleep(0.3)  # the server prepares the answer during this time
        await self.send(silence(0.5))
        await self.talk.until("response.done")
        events = self.talk.seen[begin:]
        bounds = {event["type"]: event for event in events if event["type"].startswith("input_audio_buffer.speech")}
        start = bounds["input_audio_buffer.speech_started"]["audio_start_ms"]
        end = bounds["input_audio_buffer.speech_stopped"]["audio_end_ms"]
        assert (end - start) / 1000 > len(question) / RATE / 2, "the turn has ended too soon"
        self.write_sound(self.buffer.take(start, end))
        await self.answer(events)

    async def send(self, sound: bytes) -> None:
        self.buffer.append(sound)
        await self.talk.append(sound)

    async def show(self, picture: Path) -> None:
        """Add a picture."""
        url = f"data:image/png;base64,{encoded(await asyncio.to_thread(picture.read_bytes))}"
        content = [{"type": "input_image", "image_url": url}]
        await self.talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.talk.until("conversation.item.done")
        self.write("user", {"type": "image", "image": str(picture)})

    async def stop_listening(self, milliseconds: int) -> None:
        """Truncate the last answer."""
        item_id = next(event["item_id"] for event in reversed(self.talk.seen) if event.get("item_id"))
        await self.talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=milliseconds)
        await self.talk.until("conversation.item.truncated")
        await self.talk.send("conversation.item.retrieve", item_id=item_id)
        item = (await self.talk.until("conversation.item.retrieved"))["item"]
        [content] = item["content"]
        self.messages[-1]["content"][0]["text"] = content["transcript"]

    async def call(self) -> None:
        """Add a question, a tool call, and the result of the call."""
        await self.talk.say("Look again.")
        self.write("user", {"type": "text", "text": "Look again."})
        call: dict[str, Any] = {"type": "function_call", "call_id": "call_1", "name": TOOL["name"], "arguments": "{}"}
        for item in (call, {"type": "function_call_output", "call_id": "call_1", "output": RESULT}):
            await self.talk.send("conversation.item.create", item=item)
            await self.talk.until("conversation.item.done")
        function = {"name": TOOL["name"], "arguments": {}}
        self.messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": function}]})
        self.write("tool", {"type": "text", "text": RESULT})

    async def push(self, sound: bytes) -> None:
        """Speak, and end the turn with a commit."""
        await self.talk.push()
        await self.talk.send("input_audio_buffer.clear")
        self.buffer.take()
        await self.send(sound)
        await self.talk.send("input_audio_buffer.commit")
        await self.talk.until("conversation.item.done")
        self.buffer.append_rest()
        self.write_sound(self.buffer.take())

    async def answer(self, events: list[dict[str, Any]]) -> None:
        """Record an answer."""
        usage = events[-1]["response"]["usage"]
        cached = usage["input_token_details"]["cached_tokens"]
        before = json.loads(json.dumps(self.messages))
        self.answers.append(Heard(before, text_in(events), sound_in(events), cached))
        self.write("assistant", {"type": "text", "text": self.answers[-1].text})

    def write(self, role: str, part: dict[str, Any]) -> None:
        self.messages.append({"role": role, "content": [part]})

    def write_sound(self, pcm: bytes) -> None:
        """Record a sound of the user as the server stores it, with the zeros that the server adds."""
        content: SoundContent = sound_of(pcm, "audio")
        file = bytes(content.medium.data.buffer())
        path = self.directory / f"{hashlib.sha256(file).hexdigest()}.wav"
        path.write_bytes(file)
        self.write("user", {"type": "audio", "audio": str(path)})


class Truths:
    """The reference's answers to one conversation."""

    def __init__(self, reference: SpokenReference, voice: str) -> None:
        self._reference = reference
        self._voice = voice
        self._answers: list[Spoken] = []
        self.prompts: list[list[int]] = []

    def next(self, messages: list[dict[str, Any]]) -> tuple[str, Spoken]:
        """The text and the speech of the next answer. `messages` are the conversation before it."""
        own = [message["content"] for message in messages if message["role"] == "assistant"]
        answers = [self._ids(content[0]["text"], index) if content else None for index, content in enumerate(own)]
        conversation = Conversation("", messages, tools=[{"type": "function", "function": TOOL}], answers=answers)
        spoken = self._reference.speak(conversation, TOKENS, FRAMES, self._voice)
        assert spoken is not None, "the reference has no answer; change the script"
        self._answers.append(spoken)
        self.prompts.append(self._reference.inputs(conversation)["input_ids"][0].tolist())
        return self._text(spoken.ids), spoken

    def _ids(self, text: str, index: int) -> list[int] | None:
        """The ids that were generated for the heard part of an earlier answer. `text` is the heard part."""
        # The tool call is the assistant's message 3, but not an answer of the reference. So the indices of later
        # answers in `_answers` are smaller by one.
        ids = self._answers[index].ids if index < 3 else self._answers[index - 1].ids
        special = set(self._reference.processor.tokenizer.all_special_ids)
        for end in range(len(ids), 0, -1):
            if self._text(ids[:end]) == text and not special & set(ids[:end]):
                return ids[:end]
        return None

    def _text(self, ids: list[int]) -> str:
        text: str = self._reference.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text


# The sound of a quiet room.
ROOM = numpy.random.default_rng(0).normal(0, 60, 25 * RATE)


def silence(seconds: float) -> bytes:
    return ROOM[: int(seconds * RATE)].astype("<i2").tobytes()


def speech(sound: bytes) -> bytes:
    """A recording without the silence around the speech."""
    samples = numpy.frombuffer(sound, "<i2")
    loud = numpy.flatnonzero(numpy.abs(samples) > 300)
    voiced = samples[loud[0] : loud[-1] + 1]
    return (voiced * 0.9 + ROOM[: len(voiced)]).astype("<i2").tobytes()


def softer(sound: bytes) -> bytes:
    """`sound` with less volume. The features of a turn depend on its loudest sound. If the loudest sound came last, the
    server could not use the parts that it has computed before the end of the turn.
    """
    return (numpy.frombuffer(sound, "<i2") * 0.7).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def scripts(data: Path, media_directory: Path) -> list[Script]:
    """Two conversations."""
    cars, draw = (speech(sound_of_file(data / name)) for name in ("query_to_cars.wav", "query_to_draw.wav"))
    gap = silence(0.1)
    made = []
    for number, (first, second) in enumerate([(cars, draw), (draw, cars)]):
        long = gap.join([first, second, *[softer(first), softer(second)] * 5])[: 2 * 20 * RATE]
        short = second[-2 * RATE // 2 :] if number else second[: 2 * RATE]
        picture = media.make_picture(media_directory / f"shown-{number}.png", 64 + 32 * number, 48, number)
        pushed = (media.sweep(0.5 + number, number, RATE) * 32_000).astype("<i2").tobytes()
        made.append(Script(VOICES[number], [first, short, long], picture, pushed, 800 + 320 * number))
    return made


@pytest.fixture(scope="module")
def heard_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory for the user's sounds, as the server has added them to the conversation."""
    return tmp_path_factory.mktemp("heard")


@pytest.fixture(scope="module")
def reference(checkpoints: Callable[[str], Path]) -> SpokenReference:
    return SpokenReference(checkpoints("tiny"))


@pytest.fixture(scope="module", params=[True, False], ids=["prepared", "unprepared"])
def server(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path], media_directory: Path) -> Iterator[Any]:
    limits = {} if request.param else {"realtime_speculations": 0}
    with Server(checkpoints("tiny"), media_directory, {"server": {"limits": limits}}, speech=True) as server:
        yield server


def prepares(server: Server) -> bool:
    """Whether the server prepares answers."""
    assert isinstance(server.config, dict)
    return not server.config["server"]["limits"]


async def held(server: Server, script: Script, directory: Path) -> list[Heard]:
    """Hold one whole conversation. Returns the answers."""
    async with talking(server.url) as talk:
        return await Speaker(talk, script, directory).follow()


@pytest.fixture(scope="module")
def truths(reference: SpokenReference) -> Callable[[int, Script, list[Heard]], list[tuple[str, Spoken, list[int]]]]:
    """A function that returns the reference's answers and prompts for the conversation with the given number. They are
    computed once for each number.
    """
    known: dict[int, tuple[list[list[dict[str, Any]]], list[tuple[str, Spoken, list[int]]]]] = {}

    def of(number: int, script: Script, answers: list[Heard]) -> list[tuple[str, Spoken, list[int]]]:
        asked = [heard.messages for heard in answers]
        if number not in known:
            told = Truths(reference, script.voice)
            found = [told.next(messages) for messages in asked]
            known[number] = (
                asked,
                [(text, spoken, prompt) for (text, spoken), prompt in zip(found, told.prompts, strict=True)],
            )
        assert asked == known[number][0], "another session has had another conversation"
        return known[number][1]

    return of


def check(answers: list[Heard], truth: list[tuple[str, Spoken, list[int]]]) -> None:
    """Compare the answers of a session with the reference's answers."""
    for number, (heard, (text, spoken, _)) in enumerate(zip(answers, truth, strict=True), 1):
        assert heard.text == text, f"answer {number}"
        samples, expected = heard.samples / 32768, spoken.waveform
        length = min(len(samples), len(expected))
        off = numpy.flatnonzero(numpy.abs(samples[:length] - expected[:length]) > TOLERANCE)
        if len(off) or len(samples) != len(expected):
            frame = (int(off[0]) if len(off) else length) // 1920
            assert min(spoken.margins[: frame + 2], default=1.0) < NEAR_TIE, f"answer {number}, frame {frame}"


async def test_each_answer_is_that_of_the_reference(server, scripts, truths, heard_directory) -> None:
    for number, script in enumerate(scripts):
        answers = await held(server, script, heard_directory)
        truth = truths(number, script, answers)
        check(answers, truth)
        assert len({heard.text for heard in answers}) > 3
        before: list[int] = []
        for index, (heard, (_, spoken, prompt)) in enumerate(zip(answers, truth, strict=True)):
            shared = next(
                (at for at, (ours, own) in enumerate(zip(before, prompt, strict=False)) if ours != own), len(before)
            )
            assert heard.cached_tokens >= shared - 1
            if index == LONGEST and prepares(server):
                assert heard.cached_tokens > shared + WINDOW_ROWS
            # The whole previous prompt is shared. The answer to this prompt is shared too, except the part that was not
            # heard.
            assert shared >= len(before) - (TOKENS if index == LONGEST + 1 else 0)
            before = prompt + spoken.ids[:-1]


async def test_eight_sessions_at_once(server, scripts, truths, heard_directory) -> None:
    chosen = [number % 2 for number in range(SESSIONS)]
    found = await asyncio.gather(*(held(server, scripts[number], heard_directory) for number in chosen))
    for number, answers in zip(chosen, found, strict=True):
        check(answers, truths(number, scripts[number], answers))


def test_answers_are_prepared_if_the_server_is_configured_so(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/metrics") as page:
        metrics = page.read().decode()
    for name in ('omni_realtime_speculations_total{outcome="kept"}', "omni_realtime_early_parts_total"):
        found = re.search(rf"^{re.escape(name)} ([0-9.]+)$", metrics, re.MULTILINE)
        assert (found is not None and float(found.group(1)) > 0) == prepares(server)
