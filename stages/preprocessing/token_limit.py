"""Refuses prompts that are too long for the model, as the OpenAI API does."""

from __future__ import annotations

from msgspec import Struct

from omni_pipeline.errors import bad_request


class TokenLimit(Struct, frozen=True):
    """The maximum number of tokens of a prompt, media included."""

    tokens: int

    def check(self, tokens: int) -> None:
        """Raises OmniError 400 ``context_length_exceeded`` if `tokens` are too many."""
        if tokens > self.tokens:
            raise bad_request(
                f"This model's maximum context length is {self.tokens} tokens. However, your messages resulted in "
                f"{tokens} tokens. Please reduce the length of the messages.",
                param="messages",
                code="context_length_exceeded",
            )
