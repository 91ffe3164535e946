"""The error for a conversation that is longer than the model's context."""

from __future__ import annotations

from omni_pipeline.errors import OmniError, bad_request


def context_length_exceeded(limit: int, found: str) -> OmniError:
    """An error with status 400 and the code ``context_length_exceeded``.

    Args:
        limit: Maximum number of tokens.
        found: The length of the conversation in words, for example "9000 tokens".
    """
    return bad_request(
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in {found}. Please "
        "reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )
