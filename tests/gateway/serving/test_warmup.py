"""The warm-up request has real media, and is repeated until the pipeline answers it."""

from __future__ import annotations

import io
import itertools

import av
import numpy
import pytest
import soundfile
from PIL import Image

from gateway.answers.collector import Collector
from gateway.serving import warmup
from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.codec import Codec
from stages.messages import MediaRef
from stages.routes import route
from stages.topology import QWEN3_OMNI
from tests.gateway.scripted import ScriptedPipeline


def test_the_picture_is_a_grey_ramp():
    image = Image.open(io.BytesIO(warmup.png()))
    image.load()
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert [image.getpixel((x, 63)) for x in (0, 1, 63)] == [0, 4, 252]


def test_the_sound_is_a_second_of_a_tone():
    samples, rate = soundfile.read(io.BytesIO(warmup.wav()))
    assert (rate, samples.shape) == (16000, (16000,))
    assert numpy.abs(numpy.fft.rfft(samples)).argmax() == 440


def test_the_clip_is_a_moving_ramp():
    with av.open(io.BytesIO(warmup.gif())) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 4
    assert len(frames) == 8
    for index, frame in enumerate(frames):
        expected = [[2 * ((x + y + 8 * index) % 128) for x in range(64)] for y in range(64)]
        assert (frame == numpy.array(expected)[..., None]).all()


def test_the_request_touches_every_modality_and_stage():
    request = warmup.warmup_request("ethan")
    assert [media.kind for media in request.media] == ["image", "audio", "video"]
    assert [part.index for part in request.turns[0].content if isinstance(part, MediaRef)] == [0, 1, 2]
    assert route(request).all >= frozenset(QWEN3_OMNI.stage_names)


def test_the_request_is_spoken_in_more_than_one_frame():
    speech = warmup.warmup_request("ethan").speech
    assert (speech.speaker, speech.talker.max_tokens, speech.talker.ignore_eos) == ("ethan", 4, True)


def test_the_request_is_not_spoken_without_a_voice():
    assert warmup.warmup_request(None).speech is None


def test_the_request_travels_on_the_entry_edge():
    from omni_pipeline.wire.messages import Start

    codec = Codec(QWEN3_OMNI.body_types())
    sent = Start("warm-up-1", "gateway", "preprocessing", warmup.warmup_request("ethan"))
    received = codec.decode(codec.encode(sent))
    assert bytes(received.body.media[1].data.buffer()) == warmup.wav()


@pytest.mark.parametrize("failures", [0, 1, 3])
async def test_it_is_sent_again_until_it_is_answered(failures, monkeypatch):
    monkeypatch.setattr(warmup, "_FIRST_PAUSE", 0.001)
    pipeline = ScriptedPipeline()
    refusals = [ErrorInfo(status=503, message="Not yet.")] * failures
    submit = pipeline.submit

    def flaky(request_id, body, stages, **more):
        assert more["warming"] == {}
        pipeline.refusal = refusals.pop() if refusals else None
        submit(request_id, body, stages, **more)

    pipeline.submit = flaky
    await warmup.warm_up(Collector(pipeline, reader_bytes=1000, restart_seconds=1), "ethan", itertools.count(1))
    assert list(pipeline.bodies) == [f"warm-up-{failures + 1}"]
