"""Determines the maximum length of an answer from the request's limit and the operator's limit."""

from __future__ import annotations

from gateway.api.schema import ChatCompletionRequest, SamplingByStage, StageSampling
from omni_pipeline.errors import OmniError, bad_request


def text_limit(request: ChatCompletionRequest, most: int | None) -> int | None:
    """Maximum number of tokens of the text; None means that the thinker decides when the text ends.

    Args:
        most: The operator's limit, if there is one. The limit also applies to a request that sets no limit.

    Raises:
        OmniError: 400 if the request asks for more than `most`.
    """
    own = _own(request).thinker or StageSampling()
    limit = _within(
        most,
        {
            "stage_sampling.thinker.max_tokens": own.max_tokens,
            "max_completion_tokens": request.max_completion_tokens,
            "max_tokens": request.max_tokens,
        },
    )
    if most is not None and (request.min_tokens or 0) > most:
        raise _too_many("min_tokens", most)
    return limit


def speech_limit(request: ChatCompletionRequest, most: int | None) -> int | None:
    """Maximum number of talker tokens. The rules are the same as in `text_limit`. None means that the talker decides
    when the speech ends.
    """
    own = _own(request).talker_ar or StageSampling()
    return _within(
        most,
        {
            "stage_sampling.talker_ar.max_tokens": own.max_tokens,
            "talker_max_new_tokens": request.talker_max_new_tokens,
        },
    )


def reading_limit(own: StageSampling, most: int | None) -> int | None:
    """Maximum number of talker tokens for a text that is read aloud. The rules are the same as in `text_limit`."""
    return _within(most, {"stage_sampling.talker_ar.max_tokens": own.max_tokens})


def _own(request: ChatCompletionRequest) -> SamplingByStage:
    return request.stage_sampling or SamplingByStage()


def _within(most: int | None, asked: dict[str, int | None]) -> int | None:
    """The limit that applies. `asked` contains the limits in the request, keyed by field. The result is the first limit
    in `asked` that is not None. If all of them are None, the result is `most`.

    Raises:
        OmniError: 400 if the request asks for more than `most`.
    """
    field, limit = next(((field, limit) for field, limit in asked.items() if limit is not None), ("", most))
    if most is not None and limit is not None and limit > most:
        raise _too_many(field, most)
    return limit


def _too_many(field: str, most: int) -> OmniError:
    return bad_request(
        f"Invalid '{field}': this server generates at most {most} tokens.", param=field, code="invalid_value"
    )
