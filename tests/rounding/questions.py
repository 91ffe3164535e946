"""Makes the demo model's test questions, for the API and for the reference: the usage guide's questions, and held-out
questions.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.quality.questions import GUIDE, conversation
from tests.reference import Conversation

sys.path.insert(0, str(ROOT / "scripts"))

from demo_model.judge.held_out import examples

_SUFFIXES = {"image/jpeg": ".jpg", "video/mp4": ".mp4"}


@dataclass(frozen=True)
class Question:
    """One question: the body of the API request, and the same conversation for the reference."""

    body: dict[str, Any]
    conversation: Conversation


def questions(directory: Path, count: int, seed: int) -> list[Question]:
    """The guide's questions and `count` held-out questions. The media files are written to `directory`."""
    guide = [Question(body, conversation(name, ROOT)) for name, (body, _) in GUIDE.items()]
    held_out = [
        Question({"messages": one.messages}, _conversation(f"{seed}-{number}", one.messages, directory))
        for number, one in enumerate(islice(examples(seed), count))
    ]
    return guide + held_out


def _conversation(name: str, messages: list[dict[str, Any]], directory: Path) -> Conversation:
    """The messages of a request, converted to a conversation whose media are files."""
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append({"role": message["role"], "content": [_part(part, directory) for part in parts]})
    return Conversation(name, turns)


def _part(part: dict[str, Any], directory: Path) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return part
    if kind == "input_audio":
        return {"type": "audio", "audio": _file(part["input_audio"]["data"], ".wav", directory)}
    header, _, data = part[kind]["url"].partition(",")
    suffix = _SUFFIXES[header.removeprefix("data:").removesuffix(";base64")]
    own = kind.removesuffix("_url")
    return {"type": own, own: _file(data, suffix, directory)}


def _file(data: str, suffix: str, directory: Path) -> str:
    path = directory / f"{len(list(directory.iterdir()))}{suffix}"
    path.write_bytes(base64.b64decode(data))
    return str(path)
