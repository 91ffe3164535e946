"""Servers with replicas give the same answers as a server with one replica of each stage, and use all replicas."""

from __future__ import annotations

import base64
import io
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import requests
import soundfile

from tests.device import PATIENCE
from tests.gateway.realtime.talking import sound_of_file, talking
from tests.server import Server, colocated, fused

GREEDY = {"temperature": 0, "talker_temperature": 0}
SEEDED = {"temperature": 0.9, "top_k": 5, "seed": 11, "talker_temperature": 0.9, "talker_top_k": 5}
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "ethan", "format": "pcm16"}}
SHORT = {"max_tokens": 10, "talker_max_new_tokens": 13, "return_token_ids": True}


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **SHORT, **fields}


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy text": said("Tell me a story.", **GREEDY, modalities=["text"]),
    "seeded text": said("Tell me a story.", **SEEDED, modalities=["text"]),
    "greedy speech": said("What is this?", **GREEDY, **SPOKEN, images=["tests/data/cars.jpg"]),
    "seeded speech": said("Who are you?", **SEEDED, **SPOKEN),
    "greedy speech to a sound": said("", **GREEDY, **SPOKEN, audios=["tests/data/query_to_cars.wav"]),
}
STAGES = {"stages": {"preprocessing": {"options": {"max_resized_pixels": 1_000_000}}}}
VOICES = {"voice": 2, "vocoder": 3}


def wait_for_all_replicas(server: Server) -> None:
    server.until(lambda: server.health()[1]["status"] == "ok", PATIENCE.start)


@pytest.fixture(scope="module")
def voices(tiny_checkpoint: Path, repository: Path) -> Iterator[Server]:
    config = STAGES | {"groups": {name: {"replicas": number} for name, number in VOICES.items()}}
    with Server(tiny_checkpoint, repository, config, speech=True) as server:
        wait_for_all_replicas(server)
        yield server
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def pipelines(tiny_checkpoint: Path, repository: Path) -> Iterator[Server]:
    """Two whole pipelines that take turns, whatever their prefix caches contain."""
    layout = colocated()["stages"]
    config = {"stages": {**layout, **STAGES["stages"]}, "routing": {"prefix": "off"}}
    with Server(tiny_checkpoint, repository, config, ["--replicas", "all=2"], speech=True) as server:
        wait_for_all_replicas(server)
        yield server
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def thinkers(tiny_checkpoint: Path, repository: Path) -> Iterator[Server]:
    """A server with two thinkers. It chooses a request's thinker by the contents of their prefix caches."""
    config = fused() | {"groups": {"thinker": {"replicas": 2}}}
    config["stages"]["thinker"] = {"worker": "thinker"}
    with Server(tiny_checkpoint, repository, config) as server:
        wait_for_all_replicas(server)
        yield server
    assert "Traceback" not in server.log.read_text()


Heard = tuple[list[int], numpy.ndarray]


def ask(server: Server, name: str) -> Heard:
    """The token ids and the samples, int16, of the answer to a request."""
    status, answer = server.post(REQUESTS[name])
    assert status == 200, (name, answer)
    [choice] = answer["choices"]
    sound = base64.b64decode((choice["message"].get("audio") or {"data": ""})["data"])
    return choice["token_ids"], numpy.frombuffer(sound, numpy.int16)


@pytest.fixture(scope="module")
def alone(speaker: Server) -> dict[str, Heard]:
    """The answers of a server with one replica of each stage."""
    return {name: ask(speaker, name) for name in REQUESTS}


def metrics(server: Server) -> list[str]:
    with urllib.request.urlopen(f"{server.url}/metrics") as page:
        return page.read().decode().splitlines()


def replicas_that_worked(server: Server, stage: str) -> set[str]:
    """The replicas of a stage that have received messages, according to the metrics."""
    found = set()
    for line in metrics(server):
        if line.startswith("omni_stage_received_total{") and f'stage="{stage}"' in line and not line.endswith(" 0.0"):
            found.add(line.partition('replica="')[2].partition('"')[0])
    return found


@pytest.mark.parametrize("kind", ["voices", "pipelines"])
def test_answers_do_not_depend_on_replicas(kind: str, request: pytest.FixtureRequest, alone: dict[str, Heard]) -> None:
    server: Server = request.getfixturevalue(kind)
    for name, (ids, sound) in alone.items():
        assert ids
        assert (len(sound) > 0) == ("speech" in name)
        for _ in range(3):  # one after the other, the requests go through all replicas in turn
            found_ids, found_sound = ask(server, name)
            assert found_ids == ids, name
            assert numpy.array_equal(found_sound, sound), name


@pytest.mark.parametrize("kind", ["voices", "pipelines"])
def test_answers_do_not_depend_on_replicas_or_on_other_requests(
    kind: str, request: pytest.FixtureRequest, alone: dict[str, Heard]
) -> None:
    server: Server = request.getfixturevalue(kind)
    names = [*REQUESTS] * 3
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: ask(server, name), names))
    for name, (ids, sound) in zip(names, answers, strict=True):
        assert ids == alone[name][0], name
        # Batches of other sizes round differently. So 16-bit samples may differ by up to two units here.
        assert len(sound) == len(alone[name][1])
        assert numpy.abs(sound.astype(int) - alone[name][1]).max(initial=0) <= 2, name


def test_all_replicas_have_worked(voices: Server, pipelines: Server) -> None:
    assert replicas_that_worked(voices, "talker_ar") == {"0", "1"}
    assert replicas_that_worked(voices, "code_predictor") == {"0", "1"}
    assert replicas_that_worked(voices, "code2wav") == {"0", "1", "2"}
    assert replicas_that_worked(voices, "thinker") == {"0"}
    assert replicas_that_worked(pipelines, "thinker") == {"0", "1"}
    assert replicas_that_worked(pipelines, "preprocessing") == {"0", "1"}


Turn = tuple[str, int, int]


def converse(server: Server, picture: str) -> list[Turn]:
    """Hold three conversations about a picture, with three turns each. The conversations take turns. Returns three
    values for each turn: the answer, the number of tokens of the prompt, and the number of these tokens that were in
    the prefix cache.
    """
    said: dict[str, list[dict[str, Any]]] = {}
    turns = []
    for question in ("What is this?", "What colour is it?", "Tell me more."):
        for name in ("Ann", "Bob", "Eve"):
            if name not in said:
                content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
                said[name] = [{"role": "system", "content": f"You are {name}."}, {"role": "user", "content": content}]
            else:
                said[name].append({"role": "user", "content": question})
            status, answer = server.post({"messages": said[name], "temperature": 0, "max_tokens": 8})
            assert status == 200, answer
            text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
            said[name].append({"role": "assistant", "content": text})
            turns.append((text, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
    return turns


def test_conversations_find_more_of_their_prompts_in_the_caches_than_without_comparison(
    thinkers: Server, pipelines: Server, data: Path
) -> None:
    picture = f"data:image/jpeg;base64,{base64.b64encode((data / 'cars.jpg').read_bytes()).decode()}"
    together, in_turn = converse(thinkers, picture), converse(pipelines, picture)
    assert [text for text, _, _ in together] == [text for text, _, _ in in_turn]
    for number, (_, _, cached) in enumerate(together[3:], 3):
        _, earlier_prompt, _ = together[number - 3]
        assert cached > 0.9 * earlier_prompt
    assert sum(cached for _, _, cached in together) > 1.5 * sum(cached for _, _, cached in in_turn)
    lines = metrics(thinkers)
    assert 'omni_route_choices_total{group="thinker",reason="prefix"} 6.0' in lines
    [found] = [line for line in lines if line.startswith('omni_route_cached_tokens_total{group="thinker"}')]
    assert float(found.rpartition(" ")[2]) == sum(cached for _, _, cached in together)


async def test_the_responses_of_a_session_stay_at_one_thinker(thinkers: Server, data: Path) -> None:
    """The prefix cache of a session's thinker also contains the ids of earlier responses."""
    sound = sound_of_file(data / "query_to_cars.wav")
    async with talking(thinkers.url) as ann, talking(thinkers.url) as bob, talking(thinkers.url) as eve:
        known = {}
        for turn in range(3):
            for name, talk in (("Ann", ann), ("Bob", bob), ("Eve", eve)):
                if not turn:
                    await talk.push()
                await talk.append(sound)
                await talk.send("input_audio_buffer.commit")
                await talk.until("conversation.item.done")
                instructions = f"You are {name}, and you speak to a friend."
                events = await talk.respond(instructions=instructions, output_modalities=["text"], max_output_tokens=6)
                usage = events[-1]["response"]["usage"]
                if turn:
                    assert usage["input_token_details"]["cached_tokens"] >= known[name] - 1
                known[name] = usage["input_tokens"] + usage["output_tokens"]


def test_a_recording_and_its_pieces_go_through_one_pipeline(pipelines: Server, data: Path) -> None:
    """The pieces are cut out of sound that the stage `preprocessing` keeps, so another replica of this stage could not
    cut the pieces.
    """
    wave, rate = soundfile.read(data / "query_to_cars.wav", dtype="float32")
    once = numpy.concatenate([wave, numpy.zeros(rate // 2, numpy.float32)])
    file = io.BytesIO()
    soundfile.write(file, numpy.tile(once, 45 * rate // len(once) + 1), rate, "PCM_16", format="WAV")
    heard = []
    for _ in range(2):
        form = {"response_format": "verbose_json", "language": "en", "max_tokens": 4}
        sent = {"file": file.getvalue()}
        answer = requests.post(f"{pipelines.url}/v1/audio/transcriptions", files=sent, data=form, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["segments"]) >= 2
        heard.append(answer.json()["text"])
    assert heard[0] == heard[1]


def test_metrics_show_each_replica(voices: Server) -> None:
    lines = metrics(voices)
    for group, number in VOICES.items():
        for replica in range(number):
            assert f'omni_replica_up{{group="{group}",replica="{replica}"}} 1.0' in lines
            assert f'omni_replica_bound_requests{{group="{group}",replica="{replica}"}} 0.0' in lines
    assert voices.health()[1]["status"] == "ok"


def bound(server: Server) -> list[int]:
    """The number of open requests of each vocoder."""
    start = 'omni_replica_bound_requests{group="vocoder",'
    return [int(float(line.rpartition(" ")[2])) for line in metrics(server) if line.startswith(start)]


def test_a_killed_vocoder_ends_only_its_own_answers(voices: Server) -> None:
    """This test must be the last test of this server, because it leaves the end of a worker in the server's log."""
    long = said("Tell me a long story.", **GREEDY, **SPOKEN) | {"max_tokens": 40, "talker_max_new_tokens": 400}

    def speak(_: int) -> tuple[int, Any, float]:
        status, answer = voices.post(long)
        return status, answer, time.monotonic()

    pid = voices.health()[1]["workers"]["code2wav@1"]["pid"]
    with ThreadPoolExecutor(8) as threads:
        speaking = [threads.submit(speak, number) for number in range(8)]
        voices.until(lambda: sum(bound(voices)) == 8, PATIENCE.request)
        spread = bound(voices)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        voices.until(lambda: voices.health()[1]["status"] == "degraded", 5)
        assert voices.health()[0] == 200
        ends = [each.result() for each in speaking]
    lost = [(answer["error"]["code"], ended - killed) for status, answer, ended in ends if status == 503]
    assert sorted(spread) == [2, 3, 3]
    assert [code for code, _ in lost] == ["worker_lost"] * spread[1]
    assert max(seconds for _, seconds in lost) < 2  # one second, and more for the end of a process on a busy machine
    assert [status for status, _, _ in ends].count(200) == 8 - spread[1]
    wait_for_all_replicas(voices)
    assert bound(voices) == [0, 0, 0]
