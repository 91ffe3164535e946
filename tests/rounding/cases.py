"""Lists the conversations for the tests in bfloat16, and records the reference's results on these conversations."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT, make_checkpoint
from tests.equality.conversations import Kit, all_conversations, text
from tests.reference import Conversation
from tests.rounding.deviations import Answer, Figures, Texts
from tests.rounding.limits import CHANGE
from tests.rounding.reference import RoundedReference, Speech
from tests.rounding.stages import BEST

TOKENS = 24
SPOKEN_TOKENS = 16
FRAMES = 24
LONG = (
    "How many cars are there in the picture?",
    "What is being drawn, and in which colour?",
    "The quick brown fox jumps over the lazy dog.",
    "Who are you, and what can you see?",
    "One two three four five six seven eight nine ten.",
    "Is the star to the left of the circle?",
)
_REPEATED = 50
VOICES = ("ethan", "chelsie", "aiden")


def checkpoint(name: str) -> Path:
    """Directory of one of `limits.CHECKPOINTS`."""
    return ROOT / "demo" / "qwen3-omni-demo" if name == "demo" else make_checkpoint(name)


def group(conversation: Conversation) -> str:
    """The kind of a conversation. The results are grouped by this kind."""
    return conversation.name.split("-")[0]


def conversations(kit: Kit) -> list[Conversation]:
    """The equality tests' conversations, and long conversations. The long ones are needed because slightly wrong rotary
    angles have an effect only at large positions.
    """
    long = [
        Conversation(f"long-{number}", [{"role": "user", "content": [text(f"{sentence} " * _REPEATED)]}])
        for number, sentence in enumerate(LONG)
    ]
    return all_conversations(kit) + long


def record(reference: RoundedReference, kit: Kit, step: int = 4) -> dict[str, Speech]:
    """Spoken answers to every `step`-th conversation, by the name of the conversation."""
    speeches: dict[str, Speech] = {}
    for index, conversation in enumerate(all_conversations(kit)[::step]):
        speech = reference.record(conversation, SPOKEN_TOKENS, FRAMES, VOICES[index % len(VOICES)])
        if speech is not None:
            speeches[conversation.name] = speech
    return speeches


def compare_texts(ours: RoundedReference, truth: RoundedReference, conversations: list[Conversation]) -> Figures:
    """Compare the reference's answers in two data types. For each token, the comparison also measures how much the lead
    of the best candidate over the second-best candidate changes.
    """
    texts = Texts()
    for conversation in conversations:
        ids, logits = ours.answer(conversation, TOKENS)
        best = logits.log_softmax(-1).topk(BEST)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        answer = Answer(ids, [dict(zip(*pair, strict=True)) for pair in pairs])
        texts.add(group(conversation), answer, truth.answer(conversation, TOKENS, ids)[1])
    return texts.figures() | {CHANGE: texts.change()}
