"""Contains the usage guide's questions and the right answers. Each question is given in the format of the API and in
the format of the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.reference import Conversation

GUIDE: dict[str, tuple[dict[str, Any], str]] = {
    "picture, typed": (
        {
            "messages": [{"role": "user", "content": "How many cars are there in the picture?"}],
            "images": ["tests/data/cars.jpg"],
        },
        "There are three cars.",
    ),
    "picture, spoken": (
        {
            "messages": [{"role": "user", "content": ""}],
            "images": ["tests/data/cars.jpg"],
            "audios": ["tests/data/query_to_cars.wav"],
        },
        "There are three cars.",
    ),
    "clip, spoken": (
        {
            "messages": [{"role": "user", "content": ""}],
            "videos": ["tests/data/draw.mp4"],
            "audios": ["tests/data/query_to_draw.wav"],
        },
        "A house is being drawn.",
    ),
}


def conversation(name: str, root: Path) -> Conversation:
    """The question `name` in the format of the reference, with the paths of its media under `root`."""
    body, _ = GUIDE[name]
    parts = [
        {"type": kind, kind: str(root / path)}
        for kind in ("image", "video", "audio")
        for path in body.get(f"{kind}s", [])
    ]
    text = body["messages"][0]["content"]
    parts += [{"type": "text", "text": text}] if text else []
    return Conversation(name, [{"role": "user", "content": parts}])
