"""Adds the client's number to a request, so that the stages let clients take turns."""

from __future__ import annotations

import zlib

from msgspec import structs

from stages.messages import ChatRequest, EntryRequest, PieceRequest, Recording, SpeechRequest


def set_sender(body: EntryRequest, client: str) -> None:
    """Set the number of the client wherever a stage looks for it: in the request, and in the `Sampling` of all language
    models that work for the request.
    """
    number = zlib.crc32(client.encode())
    if isinstance(body, Recording):
        body.sender = number
    if isinstance(body, ChatRequest | PieceRequest):
        body.thinker = structs.replace(body.thinker, sender=number)
    if isinstance(body, ChatRequest | SpeechRequest) and body.speech is not None:
        body.speech = structs.replace(body.speech, talker=structs.replace(body.speech.talker, sender=number))
