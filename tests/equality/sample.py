"""A sample of the conversations, with the reference's answers on one checkpoint.

With some servers, a test of all conversations would take too long. The tests of these servers use this sample.
"""

from __future__ import annotations

from pathlib import Path

from tests.equality import test_served as text
from tests.equality import test_spoken as speech
from tests.equality.conversations import Kit, all_conversations
from tests.reference import Conversation, Reference, SpokenReference

SAMPLE = [
    "text-hello",
    "text-turns",
    "image-after-text",
    "image-two",
    "audio-0.99",
    "audio-two",
    "video-even",
    "mix-all",
    "heard-clip",
    "heard-wide-and-short",
]

CLIENTS = 6
"""Number of clients that ask a server at the same time."""


def sample(kit: Kit) -> list[Conversation]:
    return [one for one in all_conversations(kit) if one.name in SAMPLE]


def text_truths(conversations: list[Conversation], checkpoint: Path) -> text.Truths:
    reference = Reference(checkpoint)
    return text.Truths(conversations, {one.name: reference.greedy(one, text.TOKENS) for one in conversations})


def spoken_truths(conversations: list[Conversation], checkpoint: Path) -> speech.Truths:
    """The reference's spoken answers. Conversations for which the reference makes no speech are left out."""
    reference = SpokenReference(checkpoint)
    heard = {one.name: reference.speak(one, speech.TOKENS, speech.FRAMES, "ethan") for one in conversations}
    voices = {name: answer for name, answer in heard.items() if answer is not None}
    spoken = [one for one in conversations if one.name in voices]
    return speech.Truths(spoken, dict.fromkeys(voices, "ethan"), voices)
