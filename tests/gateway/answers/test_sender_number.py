"""Every request to the stages contains the number of the client that sent it."""

from __future__ import annotations

import aiohttp

from gateway.answers.sender_number import set_sender
from omni_pipeline.wire.tensor import Tensor
from stages.messages import (
    ChatRequest,
    Media,
    PieceRequest,
    Recording,
    Sampling,
    SpeechOptions,
    SpeechRequest,
    sender_of,
)
from tests.gateway.scripted import ScriptedPipeline, serving


def test_all_language_models_get_the_number() -> None:
    speech = SpeechOptions("ethan", Sampling(top_k=5), Sampling(), True)
    chat, reading, piece = ChatRequest([], speech=speech), SpeechRequest("Hello.", "", speech), PieceRequest("whole", 0)
    recording = Recording(Media("audio", Tensor.of(b"x"), "file"))
    for body in (chat, reading, piece, recording):
        assert sender_of(body) == 0
        set_sender(body, "10.0.0.1")
    [number] = {each.sender for each in (chat.thinker, chat.speech.talker, reading.speech.talker, piece.thinker)}
    assert number
    assert {sender_of(body) for body in (chat, reading, piece, recording)} == {number}
    assert chat.speech == reading.speech
    assert chat.speech.talker.top_k == 5
    assert speech.talker.sender == 0, "options that requests share stay as they are"


async def test_two_addresses_are_two_senders() -> None:
    pipeline = ScriptedPipeline(["Hello"])
    senders = []
    async with serving(pipeline, speaks=True) as served:
        for address in ("127.0.0.1", "127.0.0.1", "127.0.0.2"):
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0))) as session:
                body = {"messages": [{"role": "user", "content": "Hello?"}], "modalities": ["text", "audio"]}
                async with session.post(f"{served.url}/v1/chat/completions", json=body) as response:
                    assert response.status == 200
            request = pipeline.bodies[await pipeline.submitted.get()]
            assert request.speech.talker.sender == request.thinker.sender
            senders.append(request.thinker.sender)
    assert senders[0] == senders[1] != senders[2]
