"""Contains the questions that every client program asks, and prints the answers as JSON. The tests judge the
answers.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, DATA = f"{sys.argv[1]}/v1", Path(sys.argv[2])
KEY = "none"
QUESTION = "How many cars are there in the picture?"
FOLLOW_UP = "Is there a red car?"
# A tool with a single possible call, so that a test knows the arguments.
STOCK = {
    "name": "in_stock",
    "description": "How many things of a kind there are",
    "parameters": {
        "type": "object",
        "properties": {"kind": {"type": "string", "enum": ["car"]}},
        "required": ["kind"],
        "additionalProperties": False,
    },
}
SPEECH = {"modalities": ["text", "audio"], "audio": {"voice": "ethan", "format": "wav"}}


def base64_of(name: str) -> str:
    """The content of a test media file in base64."""
    return base64.b64encode((DATA / name).read_bytes()).decode()


PICTURE = f"data:image/jpeg;base64,{base64_of('cars.jpg')}"
SOUND = base64_of("query_to_cars.wav")


def print_answers(cases: dict[str, Callable[[], Any]]) -> None:
    """Print the result of each case. If the library raises an exception, the result is ``{"error": …}``."""
    answers = {}
    for name, ask in cases.items():
        try:
            answers[name] = ask()
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answers))
