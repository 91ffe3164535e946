"""Generates requests from the API's own description. The requests ask the server to read texts aloud."""

from __future__ import annotations

import random
from typing import Any

from fuzzing.api import ApiFuzzer


class SpeechFuzzer(ApiFuzzer):
    """Sends generated requests to read texts aloud; see `ApiFuzzer`."""

    path = "/v1/audio/speech"
    last_event = None

    def tamed(self, body: Any, rng: random.Random) -> Any:
        """`body` changed so that its speech is short, and so that the voice usually exists."""
        if not isinstance(body, dict):
            return body
        body["stage_sampling"] = sampling = dict(body.get("stage_sampling") or {})
        sampling["talker_ar"] = dict(sampling.get("talker_ar") or {}) | {"max_tokens": rng.randrange(1, 30)}
        if isinstance(body.get("extra_body"), dict):
            body["extra_body"].pop("stage_sampling", None)
        if rng.random() < 0.8:
            body["voice"] = rng.choice([None, "default", "ethan"])
        if rng.random() < 0.5:
            body["input"] = " ".join(
                rng.choices(["One", "car", "is", "red.", "二", "\n", "<|im_end|>"], k=rng.randrange(1, 400))
            )
        return body
