"""Over HTTP, speech equals the reference's speech sample by sample, in every layout, whatever other requests are in
progress.
"""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import requests

from stages.preprocessing.passages import passages
from tests.device import EXACTNESS, PATIENCE
from tests.equality.conversations import Kit, all_conversations, request
from tests.equality.serving import serving
from tests.reference import NEAR_TIE, Conversation, Spoken, SpokenReference
from tests.served.streams import DONE, stream
from tests.server import Server, colocated

TOKENS = 16
FRAMES = 20
# The tolerance is relative to full scale. The second term is the rounding to 16 bits. On the random checkpoints, single
# samples of the reference's sound differ by up to `EXACTNESS.samples` from a computation in float64. So our samples may
# differ by twice this value from the reference's samples.
TOLERANCE = 2 * EXACTNESS.samples + 0.5 / 32768
SAMPLES_PER_FRAME = 1920
VOICES = ("ethan", "chelsie", "aiden")
GREEDY = {"talker_temperature": 0, "talker_max_new_tokens": FRAMES + 1}


def limited(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with a limit of `FRAMES` for each passage of a text that is read aloud. Conversations have another
    limit.
    """
    stages = config.get("stages", {})
    talker = stages.get("talker_ar", {}) | {"options": {"default_max_tokens": FRAMES + 1}}
    return config | {"stages": stages | {"talker_ar": talker}}


# Both layouts on both checkpoints. One of the four pairs uses all conversations. The other pairs use every second or
# every fourth conversation, because the reference takes a second or more for each answer.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], int]] = {
    "split": ("tiny", limited({}), 1),
    "colocated": ("nano", limited(colocated()), 2),
    "split-nano": ("nano", limited({}), 4),
    "colocated-tiny": ("tiny", limited(colocated()), 4),
}

# Texts that are read aloud, with their instructions.
READ: dict[str, tuple[str, str]] = {
    "one word": ("Yes", ""),
    "a sentence": ("There are three cars in the picture.", ""),
    "an answer": ("A house is being drawn.", "What is being drawn?"),
    "a lecture": ("Speak, and I will tell you who you are.", "Read this slowly, as a teacher does."),
    "numbers": ("3.14, 1999 and 10:45 are numbers (mostly)!", ""),
    "Chinese": ("你好，世界！今天天气很好。", "请朗读。"),
    "Russian": ("Она сказала, что придёт завтра.", ""),
    "punctuation": ("Well... (who knows?) – nobody; \"yes\" & 'no'!", "Say something odd."),
    "passages": ("One car is red. Two cars are blue, and nobody knows why. " * 30, ""),
    "an answer in passages": ("图片里有三辆车。第一辆车是红色的，第二辆车是蓝色的。" * 20, "What do you see?"),
}
LONG = Conversation("long", [{"role": "user", "content": [{"type": "text", "text": "Tell me a very long story."}]}])
LONG_TOKENS, LONG_FRAMES = 8, 310


@dataclass
class Truths:
    """Conversations, each with its voice and the reference's answer. Conversations on which the reference fails are
    left out.

    `answers` also has an endless answer to `LONG`, and the texts of `READ`.
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

    def read(self, name: str) -> Heard:
        """Request that the server reads a text of `READ` aloud."""
        text, instructions = READ[name]
        body = {
            "input": text,
            "instructions": instructions,
            "voice": VOICES[len(name) % 3],
            "response_format": "pcm",
            "stage_sampling": {"talker_ar": {"temperature": 0}},
        }
        response = requests.post(f"{self.server.url}/v1/audio/speech", json=body, timeout=PATIENCE.request)
        assert response.status_code == 200, (name, response.text)
        return Heard(name, text, numpy.frombuffer(response.content, "<i2").astype(numpy.float32) / 32768)

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
        least = min(step for checkpoint, _, step in CONFIGURATIONS.values() if checkpoint == name)
        conversations = all_conversations(kit)[::least]
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
        read = {
            title: reference.read(list(passages(text)), instructions, FRAMES, VOICES[len(title) % 3])
            for title, (text, instructions) in READ.items()
        }
        return Truths(spoken, voices, answers | {LONG.name: long} | read)

    return of


@pytest.fixture(scope="module")
def reference(checkpoints: Callable[[str], Path]) -> Callable[[Running], SpokenReference]:
    """The reference model of a server's checkpoint."""
    of = cache(lambda checkpoint: SpokenReference(checkpoint))
    return lambda running: of(running.server.checkpoint)


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def running(
    request: pytest.FixtureRequest,
    kit: Kit,
    media_directory: Path,
    checkpoints: Callable[[str], Path],
    truths: Callable[[str], Truths],
) -> Iterator[Running]:
    checkpoint, config, step = CONFIGURATIONS[request.param]
    known = truths(checkpoint)
    chosen = {conversation.name for conversation in all_conversations(kit)[::step]}
    expected = Truths([one for one in known.conversations if one.name in chosen], known.voices, known.answers)
    with serving(checkpoints(checkpoint), media_directory, config, speech=True) as server:
        yield Running(server, expected)


def test_the_table_is_as_large_and_lively_as_it_should_be(truths: Callable[[str], Truths]) -> None:
    for name, least in (("tiny", 60), ("nano", 30)):
        known = truths(name)
        assert len(known.conversations) >= least
        names = [conversation.name for conversation in known.conversations]
        frames = [known.answers[name].codes.shape[1] for name in names]
        assert sum(count < FRAMES for count in frames) > least / 6  # some utterances end before the limit on frames
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


def test_texts_are_read_aloud_alone_and_at_eight(running: Running) -> None:
    running.check([running.read(name) for name in READ])
    order = list(READ) * 2
    random.Random(3).shuffle(order)
    with ThreadPoolExecutor(8) as clients:
        running.check(list(clients.map(running.read, order)))


def test_texts_are_read_aloud_beside_conversations(running: Running) -> None:
    conversations = running.truths.conversations[:8]
    with ThreadPoolExecutor(8) as clients:
        read = [clients.submit(running.read, name) for name in READ]
        heard = [clients.submit(running.listen, conversation) for conversation in conversations]
        running.check([each.result() for each in (*read, *heard)])


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
    """The reference's own chunked decode is not used, since it loses samples between the chunks of such a long
    utterance.
    """
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


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CALLED = '<tool_call>\n{"name": "look_up", "arguments": {"word": "car"}}\n</tool_call>'


@dataclass
class Called:
    """A text with tool calls. A grammar forces the model to answer with this text.

    Attributes:
        written: The text.
        spoken: The parts of the text that are spoken.
        calls: Number of calls.
    """

    written: str
    spoken: list[str]
    calls: int


CALLING = {
    "before": Called(f"Let me see.\n{CALLED}", ["Let me see."], 1),
    "around": Called(f"Well, one.\n{CALLED}\n{CALLED}\nAnd now two", ["Well, one.", "\nAnd now two"], 2),
    "malformed": Called(f"Hm, hm.\n{CALLED[:30]}", ["Hm, hm."], 0),
}


@pytest.mark.parametrize("name", CALLING)
def test_speech_is_that_of_the_text_outside_of_calls(
    running: Running, kit: Kit, reference: Callable[[Running], SpokenReference], name: str
) -> None:
    """The reference's talker gets the tokens outside of calls, as if the thinker had written only these tokens."""
    called = CALLING[name]
    truth = reference(running)
    parts = [kit.image(64, 64), {"type": "text", "text": "How many?"}, kit.audio(1.0)]
    conversation = Conversation(name, [{"role": "user", "content": parts}], tools=TOOLS)
    running.truths.voices[name] = VOICES[0]
    body = running.body(conversation) | {
        "tools": TOOLS,
        "regex": re.escape(called.written),
        "logit_bias": {str(truth.processor.tokenizer.encode("<tool_call>")[0]): -100},
        "max_tokens": 200,
        "return_token_ids": True,
    }
    status, answer = running.server.post(body)
    assert status == 200, answer
    [choice] = answer["choices"]
    assert len(choice["message"].get("tool_calls", [])) == called.calls
    ids = spoken_ids(truth.processor.tokenizer, choice["token_ids"], called)
    expected = truth.speak(conversation, 0, FRAMES, VOICES[0], written=ids)
    assert expected is not None
    alone = Running(running.server, Truths([], {}, {name: expected}))
    alone.check([Heard(name, "", samples(choice["message"]["audio"]["data"]))])


def spoken_ids(tokenizer: Any, ids: list[int], called: Called) -> list[int]:
    """The ids of the spoken tokens of an answer. A token that overlaps a call is not spoken. The text is ASCII."""
    content: set[int] = set()
    for part in called.spoken:
        begin = called.written.index(part)
        content |= set(range(begin, begin + len(part)))
    blocks = re.finditer("<tool_call>.*?(</tool_call>|$)", called.written, re.DOTALL)
    silent = {place for block in blocks for place in range(*block.span())}
    spoken, end = [], 0
    for token in ids[:-1]:  # the last id ends the turn
        begin, end = end, end + len(tokenizer.decode([token]))
        places = {*range(begin, end)}
        if places & content and not places & silent:
            spoken.append(token)
    assert end == len(called.written)
    return spoken


ANSWER = {
    "type": "object",
    "properties": {
        "subject": {"enum": ["a red car", "three cars"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "parked": {"type": "boolean"},
    },
    "required": ["subject", "count", "parked"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 4}], ids=["greedy", "sampled"])
def test_a_constrained_answer_is_spoken_as_the_reference_speaks_its_text(
    running: Running, kit: Kit, reference: Callable[[Running], SpokenReference], sampling: dict[str, Any]
) -> None:
    """The talker gets the tokens that the grammar allowed, whether the request is alone or other requests are in
    progress.
    """
    parts = [kit.image(64, 64), {"type": "text", "text": "What is there?"}, kit.audio(1.0)]
    conversation = Conversation("a JSON text", [{"role": "user", "content": parts}])
    running.truths.voices[conversation.name] = VOICES[1]
    body = running.body(conversation) | sampling
    body |= {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": ANSWER, "strict": True}},
        "max_tokens": 100,
        "return_token_ids": True,
    }
    status, alone = running.server.post(body)
    assert status == 200, alone
    with ThreadPoolExecutor(5) as clients:
        free = [clients.submit(running.listen, each) for each in running.truths.conversations[:4]]
        _, beside = running.server.post(body)
        running.check([each.result() for each in free])
    [choice], [again] = alone["choices"], beside["choices"]
    found = json.loads(choice["message"]["content"])
    assert found["subject"] in ("a red car", "three cars")
    assert (choice["finish_reason"], again["token_ids"]) == ("stop", choice["token_ids"])
    expected = reference(running).speak(conversation, 0, FRAMES, VOICES[1], written=choice["token_ids"][:-1])
    assert expected is not None
    truth = Running(running.server, Truths([], {}, {conversation.name: expected}))
    truth.check([Heard(conversation.name, "", samples(one["message"]["audio"]["data"])) for one in (choice, again)])
