"""A recording is decoded once. Each of its pieces is prepared as a chat request with the same sound would be."""

import io
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import soundfile
from driving import finish, messages
from media_files import RATE, sound_file, tone

from omni_pipeline.contract.graph import COLLECTOR
from omni_pipeline.errors import OmniError
from omni_pipeline.wire.messages import Chunk, Claim, Failed, Start
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    ChatRequest,
    Media,
    MediaRef,
    PieceRequest,
    Recording,
    RecordingCut,
    Sampling,
    Text,
    TextOutput,
    Turn,
)
from stages.preprocessing import Preprocessing

PIECE_SECONDS = 2.0
ASR = "Transcribe the audio into text."


@pytest.fixture(scope="module")
def shared(stage_context: Any) -> Iterator[Preprocessing]:
    stage = Preprocessing(stage_context("preprocessing", readers=2, transcript_piece_seconds=PIECE_SECONDS))
    yield stage
    stage.close()


@pytest.fixture
def stage(shared: Preprocessing) -> Iterator[Preprocessing]:
    yield shared
    for request_id in list(shared.live()):
        shared.abort(request_id)


def recording(wave: numpy.ndarray, **fields: Any) -> Recording:
    return Recording(Media("audio", Tensor.of(sound_file(wave)), "file"), **fields)


def answer_of(stage: Preprocessing, request_id: str, body: Any) -> Any:
    """The message with which the stage answers a recording."""
    stage.receive(Start(request_id, "gateway", "preprocessing", body))
    return next(messages(stage, lambda: False))


def prompts(stage: Preprocessing, request_id: str, body: Any) -> list[Any]:
    """The messages that the stage sends for a piece, or for a chat request."""
    stage.receive(Start(request_id, "gateway", "preprocessing", body))
    return [message.body for message in messages(stage, lambda: request_id not in stage.live())]


def chat(wave: numpy.ndarray, *prompt: str, **fields: Any) -> ChatRequest:
    *system, text = prompt
    turns = [Turn("system", [Text(each)]) for each in system] + [Turn("user", [MediaRef(0), Text(text)])]
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, "FLOAT", format="WAV")
    return ChatRequest(turns, [Media("audio", Tensor.of(file.getvalue()), "audio")], **fields)


def same(one: list[Any], other: list[Any]) -> bool:
    return repr(comparable(one)) == repr(comparable(other))


def comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, bytes(value.buffer())
    if isinstance(value, list):
        return [comparable(each) for each in value]
    if hasattr(value, "__struct_fields__"):
        return {name: comparable(getattr(value, name)) for name in value.__struct_fields__}
    return value


def test_a_short_recording_is_one_piece_and_prepared_as_in_a_chat(stage: Preprocessing) -> None:
    wave = tone(1.3)
    cut = answer_of(stage, "r", recording(wave))
    assert cut == Chunk("r", "preprocessing", COLLECTOR, RecordingCut([1.3], None))
    options = {"thinker": Sampling(seed=5), "text": TextOutput(logprobs=True)}
    piece = prompts(stage, "p", PieceRequest("r", 0, **options))
    assert len(piece) == 2
    assert same(piece, prompts(stage, "c", chat(read_back(wave), ASR, **options)))
    assert stage.live() == {"r"}


def read_back(wave: numpy.ndarray) -> numpy.ndarray:
    """The samples that a sound file of the tests contains."""
    return soundfile.read(io.BytesIO(sound_file(wave)), dtype="float32")[0]


def test_a_long_recording_is_cut_and_its_pieces_are_the_whole(stage: Preprocessing) -> None:
    wave = read_back(tone(7.1))
    ends = answer_of(stage, "r", recording(wave)).body.ends
    assert len(ends) > 3
    assert ends[-1] == pytest.approx(7.1)
    begin = 0
    for index, end in enumerate(round(each * RATE) for each in ends):
        piece = prompts(stage, f"p{index}", PieceRequest("r", index))
        assert same(piece, prompts(stage, f"c{index}", chat(wave[begin:end], ASR)))
        begin = end
    assert begin == len(wave)
    assert stage.stats()["recording_seconds"] == pytest.approx(7.1)


@pytest.mark.parametrize(
    ("fields", "prompt", "language"),
    [
        ({"language": "en"}, ["Transcribe the English audio into text."], "English"),
        ({"language": "fr-CA"}, ["Transcribe the French audio into text."], "French"),
        ({"language": "german"}, ["Transcribe the German audio into text."], "German"),
        ({"language": "zh"}, ["请将这段中文语音转换为纯文本。"], "Chinese"),
        ({"language": "yue"}, ["Transcribe the Cantonese audio into text."], "Cantonese"),
        ({"context": "Of ships."}, ["Of ships.", ASR], None),
        (
            {"task": "translate"},
            ["Listen to the provided speech and produce a translation in English text."],
            "English",
        ),
        (
            {"task": "translate", "language": "zh_CN", "target": "de", "context": "Of <|im_end|>."},
            ["Of <|im_end|>.", "Listen to the provided Chinese speech and produce a translation in German text."],
            "German",
        ),
    ],
)
def test_the_prompt_is_the_documented_one(
    stage: Preprocessing, fields: dict[str, Any], prompt: list[str], language: str | None
) -> None:
    wave = tone(0.5)
    assert answer_of(stage, "r", recording(wave, **fields)).body.language == language
    assert same(prompts(stage, "p", PieceRequest("r", 0)), prompts(stage, "c", chat(read_back(wave), *prompt)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "xx"}, "language"),
        ({"language": ""}, "language"),
        ({"language": "e" * 10_000}, "language"),
        ({"task": "translate", "target": "tlh"}, "to_language"),
    ],
)
def test_an_unknown_language_is_refused(stage: Preprocessing, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(OmniError) as caught:
        stage.receive(Start("r", "gateway", "preprocessing", recording(tone(0.5), **fields)))
    assert (caught.value.info.status, caught.value.info.param) == (400, param)
    assert "en" in caught.value.info.message
    assert len(caught.value.info.message) < 300


@pytest.mark.parametrize(("data", "code"), [(b"", "invalid_audio"), (b"hello", "invalid_audio")])
def test_a_broken_recording_is_refused(stage: Preprocessing, data: bytes, code: str) -> None:
    body = Recording(Media("audio", Tensor.of(data), "file"))
    stage.receive(Start("r", "gateway", "preprocessing", body))
    [failed] = finish(stage)
    assert isinstance(failed, Failed)
    assert (failed.error.status, failed.error.code, failed.error.param) == (400, code, "file")


def test_a_context_that_is_too_long_is_refused(stage: Preprocessing) -> None:
    answer_of(stage, "r", recording(tone(0.5), context="word " * 300_000))
    stage.receive(Start("p", "gateway", "preprocessing", PieceRequest("r", 0)))
    failed = next(messages(stage, lambda: False))
    assert (failed.error.code, failed.error.param) == ("context_length_exceeded", "prompt")


def test_memory_is_claimed_once_and_pieces_claim_none(stage: Preprocessing) -> None:
    stage.receive(Start("r", "gateway", "preprocessing", recording(tone(7.1), at_once=2)))
    sent: list[Any] = []
    while not sent:
        sent += stage.step()
    [claim] = sent
    assert isinstance(claim, Claim)
    wave = round(7.1 * RATE) * 4
    assert claim.passing >= 2 * wave
    assert claim.lasting >= wave + 2 * round(PIECE_SECONDS * 100) * 128 * 4
    assert not stage.has_work, "nothing is decoded before the grant"
    stage.grant("r")
    assert isinstance(next(messages(stage, lambda: False)), Chunk)
    stage.receive(Start("p", "gateway", "preprocessing", PieceRequest("r", 0)))
    sent = []
    while "p" in stage.live():
        sent += stage.step()
    assert not any(isinstance(message, Claim) for message in sent)


def test_more_pieces_at_once_claim_more_and_a_short_recording_less(stage: Preprocessing) -> None:
    claims = {}
    for name, seconds, at_once in (("one", 9.0, 1), ("four", 9.0, 4), ("short", 0.3, 4)):
        stage.receive(Start(name, "gateway", "preprocessing", recording(tone(seconds), at_once=at_once)))
        while name not in claims:
            claims |= {message.request_id: message.lasting for message in stage.step() if isinstance(message, Claim)}
    assert claims["short"] < claims["one"] < claims["four"]


@pytest.mark.parametrize("phase", ["new", "measured", "cut"])
def test_an_aborted_recording_is_forgotten(stage: Preprocessing, phase: str) -> None:
    stage.receive(Start("r", "gateway", "preprocessing", recording(tone(3))))
    if phase == "measured":
        while not any(isinstance(message, Claim) for message in stage.step()):
            pass
    if phase == "cut":
        next(messages(stage, lambda: False))
    stage.abort("r")
    assert not stage.live()
    with pytest.raises(OmniError) as caught:
        stage.receive(Start("p", "gateway", "preprocessing", PieceRequest("r", 0)))
    assert (caught.value.info.status, caught.value.info.code) == (503, "worker_lost")
    stage.grant("r")
    assert prompts(stage, "c", chat(tone(0.5), ASR)), "the stage goes on"


def test_a_recording_may_be_longer_than_a_prompt(stage_context: Any) -> None:
    stage = Preprocessing(
        stage_context("preprocessing", readers=2, transcript_piece_seconds=PIECE_SECONDS, max_prompt_tokens=60)
    )
    try:
        body = answer_of(stage, "r", recording(tone(30))).body
        assert len(body.ends) >= 15
        assert prompts(stage, "p", PieceRequest("r", 3))
    finally:
        stage.close()
