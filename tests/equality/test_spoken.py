"""Over HTTP, speech equals the reference's speech sample by sample, in every layout, whatever other requests are in
progress.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.device import EXACTNESS
from tests.equality.conversations import Kit, all_conversations, request
from tests.reference import NEAR_TIE, Conversation, Spoken, SpokenReference
from tests.served.streams import DONE, stream
from tests.server import Server, colocated

TOKENS = 16
FRAMES = 20
# The tolerance is relative to full scale. The second term is the rounding to 16 bits.
TOLERANCE = EXACTNESS.samples + 0.5 / 32768
SAMPLES_PER_FRAME = 1920
VOICES = ("ethan", "chelsie", "aiden")
GREEDY = {"talker_temperature": 0, "talker_max_new_tokens": FRAMES + 1}

# Both layouts on both checkpoints. Two of the four pairs use only every fourth conversation.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], int]] = {
    "split": ("tiny", {}, 1),
    "colocated": ("nano", colocated(), 1),
    "split-nano": ("nano", {}, 4),
    "colocated-tiny": ("tiny", colocated(), 4),
}
LONG = Conversation("long", [{"role": "user", "content": [{"type": "text", "text": "Tell me a very long story."}]}])
LONG_TOKENS, LONG_FRAMES = 8, 310


@dataclass
class Truths:
    """Conversations, each with its voice and the reference's answer. Conversations on which the reference fails are
    left out.

    `answers` also has an endless answer to `LONG`.
    """

    conversations: list[Conversation]
    voices: dict[str, str]
    answers: dict[str, Spoken]


@dataclass
class Heard:
    """The answer to one conversation: text, and 16-bit samples as floats."""

    name: str
    text: str
    samples: numpy.ndarray


@dataclass
class Running:
    """A server and the answers it must speak."""

    server: Server
    truths: Truths

    def body(self, conversation: Conversation) -> dict[str, Any]:
        audio = {"voice": self.truths.voices[conversation.name], "format": "pcm16"}
        return (
            request(conversation)
            | GREEDY
            | {
                "max_tokens": TOKENS,
                "modalities": ["text", "audio"],
                "audio": audio,
            }
        )

    def ask(self, conversation: Conversation) -> Heard:
        """Request an answer without streaming."""
        status, answer = self.server.post(self.body(conversation))
        assert status == 200, (conversation.name, answer)
        message = answer["choices"][0]["message"]
        assert message["audio"]["transcript"] == message["content"]
        return Heard(conversation.name, message["content"], samples(message["audio"]["data"]))

    def listen(self, conversation: Conversation) -> Heard:
        """Request a stream, and join its pieces."""
        text, sound = "", []
        for event in self.events(self.body(conversation)):
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                if "audio" in choice["delta"]:
                    sound.append(samples(choice["delta"]["audio"]["data"]))
        return Heard(conversation.name, text, numpy.concatenate(sound) if sound else numpy.zeros(0))

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of a streamed answer; close the connection if the caller stops early."""
        with stream(self.server, body) as events:
            yield from (event for event in events if event != DONE)

    def check(self, answers: list[Heard]) -> None:
        """Compare answers with the reference's answers. A code that differs at a near tie is only counted and
        printed.
        """
        wrong: list[str] = []
        ties: list[str] = []
        for heard in answers:
            truth = self.truths.answers[heard.name]
            if len(heard.samples) == len(truth.waveform):
                off = numpy.flatnonzero(numpy.abs(heard.samples - truth.waveform) > TOLERANCE)
            else:
                shorter = min(len(heard.samples), len(truth.waveform))
                off = numpy.flatnonzero(numpy.abs(heard.samples[:shorter] - truth.waveform[:shorter]) > TOLERANCE)
                off = off if len(off) else numpy.array([shorter])
            if not len(off):
                continue
            frame = int(off[0]) // SAMPLES_PER_FRAME
            tie = min(truth.margins[: frame + 2], default=1.0) < NEAR_TIE
            said = f"{heard.name} from frame {frame}: {len(heard.samples)} samples for {len(truth.waveform)}"
            (ties if tie else wrong).append(said)
        print(f"{len(answers)} voices, {len(ties)} near ties{': ' if ties else ''}{'; '.join(ties)}")
        assert not wrong, wrong


def samples(data: str) -> numpy.ndarray:
    return numpy.frombuffer(base64.b64decode(data), "<i2").astype(numpy.float32) / 32768


@pytest.fixture(scope="module")
def truths(kit: Kit, checkpoints: Callable[[str], Path]) -> Callable[[str], Truths]:
    """The reference's answers on a checkpoint, computed once."""

    @cache
    def of(name: str) -> Truths:
        conversations = all_conversations(kit)
        voices = {conversation.name: VOICES[index % 3] for index, conversation in enumerate(conversations)}
        reference = SpokenReference(checkpoints(name))
        answers = {
            conversation.name: answer
            for conversation in conversations
            if (answer := reference.speak(conversation, TOKENS, FRAMES, voices[conversation.name])) is not None
        }
        spoken = [conversation for conversation in conversations if conversation.name in answers]
        long = reference.speak(LONG, LONG_TOKENS, LONG_FRAMES, VOICES[0], endless=True)
        assert long is not None
        return Truths(spoken, voices, answers | {LONG.name: long})

    return of


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def running(
    request: pytest.FixtureRequest,
    media_directory: Path,
    checkpoints: Callable[[str], Path],
    truths: Callable[[str], Truths],
) -> Iterator[Running]:
    checkpoint, config, step = CONFIGURATIONS[request.param]
    expected = truths(checkpoint)
    expected = Truths(expected.conversations[::step], expected.voices, expected.answers)
    with Server(checkpoints(checkpoint), media_directory, config, speech=True) as server:
        yield Running(server, expected)


def test_the_table_is_as_large_and_lively_as_it_should_be(truths: Callable[[str], Truths]) -> None:
    for name in ("tiny", "nano"):
        known = truths(name)
        assert len(known.conversations) >= 60
        names = [conversation.name for conversation in known.conversations]
        frames = [known.answers[name].codes.shape[1] for name in names]
        assert sum(count < FRAMES for count in frames) > 10  # some utterances end before the limit on frames
        assert {known.voices[name] for name in names} == set(VOICES)


def test_alone(running: Running) -> None:
    running.check([running.ask(conversation) for conversation in running.truths.conversations])


def test_streams_of_eight_with_staggered_arrival_on_a_warm_cache(running: Running) -> None:
    order = list(running.truths.conversations)
    random.Random(5).shuffle(order)
    with ThreadPoolExecutor(8) as clients:
        running.check(list(clients.map(running.listen, order)))


def test_four_at_once_while_neighbours_are_aborted(running: Running) -> None:
    """Four clients receive whole answers. Four other clients send random requests, receive a little sound and
    disconnect.
    """
    order = list(running.truths.conversations)
    random.Random(7).shuffle(order)

    def hang_up(seed: int) -> int:
        rng = random.Random(seed)
        body = running.body(rng.choice(order)) | {"max_tokens": 200, "ignore_eos": True, "talker_max_new_tokens": 400}
        events = running.events(body)
        taken = sum(1 for _, _ in zip(range(rng.choice([1, 3, 10, 30])), events, strict=False))
        events.close()
        return taken

    with ThreadPoolExecutor(8) as clients:
        rude = [clients.submit(hang_up, seed) for seed in range(30)]
        polite = [clients.submit(running.ask, conversation) for conversation in order]
        running.check([answer.result() for answer in polite])
        assert sum(one.result() for one in rude) > 0


def test_sound_comes_while_the_text_is_still_written(running: Running) -> None:
    """The first sound comes within 35 % of the time that the whole answer takes. The test passes if one of three
    attempts succeeds, so a short delay of the machine does no harm.
    """
    body = {
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "modalities": ["text", "audio"],
        "max_tokens": 64,
        "ignore_eos": True,
        "talker_max_new_tokens": 61,
        "seed": 1,
    }
    for _ in range(3):
        began, first, text_after = time.monotonic(), None, False
        for event in running.events(body):
            for choice in event["choices"]:
                if first is None and choice["delta"].get("audio", {}).get("data"):
                    first = time.monotonic()
                text_after |= first is not None and bool(choice["delta"].get("content"))
        assert first is not None
        assert text_after
        share = (first - began) / (time.monotonic() - began)
        print(f"first sound after {share:.2f} of the answer's time")
        if share <= 0.35:
            return
    raise AssertionError("the first sound came late three times")


def test_a_voice_beyond_three_hundred_frames_equals_the_whole_decode(running: Running) -> None:
    """The reference's own chunked decode is not used, since it loses samples at every seam of such a voice."""
    body = {
        "messages": request(LONG)["messages"],
        "modalities": ["text", "audio"],
        "audio": {"voice": VOICES[0], "format": "pcm16"},
        "max_tokens": LONG_TOKENS,
        "ignore_eos": True,
        "talker_temperature": 0,
        "talker_max_new_tokens": LONG_FRAMES + 1,
    }
    status, answer = running.server.post(body)
    assert status == 200
    message = answer["choices"][0]["message"]
    heard = Heard(LONG.name, message["content"], samples(message["audio"]["data"]))
    assert len(heard.samples) == LONG_FRAMES * SAMPLES_PER_FRAME - 555
    running.check([heard])


def test_a_seed_gives_the_same_voice_alone_and_in_company(running: Running) -> None:
    body = running.body(running.truths.conversations[0]) | {
        "seed": 7,
        "temperature": 0.8,
        "talker_temperature": 0.9,
        "ignore_eos": True,
    }
    with ThreadPoolExecutor(6) as clients:
        [first, *rest] = clients.map(lambda seed: running.server.post(body | {"seed": seed}), (7, 1, 2, 3, 4, 7))
    alone = running.server.post(body)
    sounds = [answer[1]["choices"][0]["message"]["audio"]["data"] for answer in (first, *rest, alone)]
    assert sounds[0] == sounds[-2] == sounds[-1]
    assert len(set(sounds)) == 5
