"""Makes requests with damaged media files in every container format."""

from __future__ import annotations

import base64
import random
from typing import Any

from fuzzing.damage import damaged
from fuzzing.seeds import Seed
from fuzzing.sending import FuzzCase

_FIELDS = {"image": "images", "audio": "audios", "video": "videos"}


def make(number: int, seed: int, files: list[Seed]) -> FuzzCase:
    """Make case `number`. The same seed and the same libraries make the same case."""
    rng = random.Random(f"{seed}:{number}")
    file = files[number % len(files)]
    how, data = damaged(file.data, rng, [other.data for other in files])
    # Usually send the file as its own kind of media, sometimes as another kind.
    kind = file.kind if rng.random() < 0.9 else rng.choice(list(_FIELDS))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": ""}],
        _FIELDS[kind]: [f"data:;base64,{base64.b64encode(data).decode()}"],
        "max_tokens": 1,
    }
    if kind == "video":
        body["use_audio_in_video"] = rng.random() < 0.5
        body["video_max_frames"] = 8
    if rng.random() < 0.05:
        body |= {"modalities": ["text", "audio"], "talker_max_new_tokens": 3}
    what = f"{file.name} as {kind}, {how}, {len(data)} bytes"
    return FuzzCase(what, kind, "/v1/chat/completions", {"json": body})
