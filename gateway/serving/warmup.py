"""Sends the warm-up request, which is the first request of a server. The request sends a picture, a sound and a clip
through every stage.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import struct
import wave
import zlib
from collections.abc import Iterator, Mapping

import msgspec

from gateway.answers.collector import Collector
from omni_pipeline.errors import OmniError
from omni_pipeline.wire.tensor import Tensor
from stages.messages import ChatRequest, Media, MediaRef, Modality, Sampling, SpeechOptions, Text, Turn
from stages.routes import route

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 1800.0  # on a GPU, the first request compiles kernels
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_SIDE = 64  # pixels


async def warm_up(collector: Collector, voice: str | None, numbers: Iterator[int]) -> None:
    """Wait until a worker needs a warm-up request, and then send a warm-up request. If the request fails, send it again
    after a pause, until it is answered. The pause grows after each failure. If stages have replicas, one request goes
    through one replica of each stage.

    Args:
        voice: Voice of the answer; with None, the request asks for text only.
        numbers: Source of the numbers in the request ids; the source must not repeat a number.
    """
    pause = _FIRST_PAUSE
    while True:
        through = await collector.cold()
        try:
            await _ask(collector, f"warm-up-{next(numbers)}", voice, through)
            return
        except OmniError as error:
            log.warning(
                "the warm-up request failed (%s, stage %s): %s Trying again in %g s.",
                error.info.code,
                error.info.stage or "gateway",
                error.info.message,
                pause,
            )
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _ask(collector: Collector, request_id: str, voice: str | None, through: Mapping[str, int]) -> None:
    request = warmup_request(voice)
    deadline = asyncio.get_running_loop().time() + _ANSWER_SECONDS
    async with collector.submit(request_id, request, route(request), deadline=deadline, warming=through) as answer:
        while await answer.take():
            pass


def warmup_request(voice: str | None) -> ChatRequest:
    """One turn with a tiny media item of each kind. The text of the answer has two tokens. If there is a voice, the
    speech of the answer has three codec frames.
    """
    media: list[tuple[Modality, bytes]] = [("image", png()), ("audio", wav()), ("video", gif())]
    return ChatRequest(
        turns=[Turn("user", [*(MediaRef(index) for index in range(len(media))), Text("What is this?")])],
        media=[Media(kind, Tensor.of(data), f"warm-up {kind}") for kind, data in media],
        thinker=Sampling(max_tokens=2, ignore_eos=True),
        speech=None if voice is None else _speech(voice),
    )


def _speech(voice: str) -> SpeechOptions:
    drawn = Sampling(temperature=1.0, top_k=50)  # sampled generation also runs the code that greedy generation needs
    return SpeechOptions(
        speaker=voice, talker=msgspec.structs.replace(drawn, max_tokens=4, ignore_eos=True), predictor=drawn
    )


def png() -> bytes:
    """A grey ramp of 64×64 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(4 * x for x in range(_SIDE))  # filter type 0, then one byte for each pixel
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 0, 0, 0, 0)  # the pixels have 8 bits of grey
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * _SIDE)) + chunk(b"IEND", b"")
    )


def wav() -> bytes:
    """A second of a 440 Hz tone, 16 kHz mono, 16 bits."""
    rate = 16000
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(
            b"".join(struct.pack("<h", round(8000 * math.sin(math.tau * 440 * i / rate))) for i in range(rate))
        )
    return file.getvalue()


def gif(frames: int = 8) -> bytes:
    """A clip of 64×64 pixels at 4 frames a second: a grey ramp that moves.

    The pixels are not compressed. With 7-bit pixels, every LZW code has 8 bits as long as the decoder's table is small.
    With a larger table, the codes would be longer. So a clear code, which empties the table, comes before each run of
    100 pixels.
    """
    clear, stop, run = 0x80, 0x81, 100
    palette = bytes(channel for level in range(128) for channel in (2 * level,) * 3)
    file = bytearray(b"GIF89a" + struct.pack("<HHBBB", _SIDE, _SIDE, 0xF6, 0, 0) + palette)
    for frame in range(frames):
        pixels = bytes((x + y + 8 * frame) % 128 for y in range(_SIDE) for x in range(_SIDE))
        codes = b"".join(bytes([clear]) + pixels[i : i + run] for i in range(0, len(pixels), run)) + bytes([stop])
        file += b"\x21\xf9\x04" + struct.pack("<BHBB", 0, 25, 0, 0)  # show this frame for 25/100 s
        file += b"\x2c" + struct.pack("<HHHHB", 0, 0, _SIDE, _SIDE, 0) + b"\x07"
        for i in range(0, len(codes), 255):
            block = codes[i : i + 255]
            file += bytes([len(block)]) + block
        file += b"\0"
    return bytes(file + b"\x3b")
