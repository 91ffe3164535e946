"""Determines the sampling parameters of each language-model stage from the defaults and the request's fields.

Each parameter has a top-level field of the request. A field of `stage_sampling` overrides the top-level field, and both
override the default. The top-level fields apply only to the thinker, except `seed` and `ignore_eos`, which apply to all
stages.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import msgspec

from gateway.api.grammars import grammar_of
from gateway.api.lengths import reading_limit, speech_limit, text_limit
from gateway.api.schema import ChatCompletionRequest, FrameSampling, SamplingByStage, SpeechSampling, StageSampling
from omni_pipeline.config.schema import Limits
from stages.messages import Sampling

_MOST_SEED = 2**63 - 1

# The reference's defaults.
_THINKER = Sampling()
_TALKER = Sampling(temperature=0.9, top_k=50, repetition_penalty=1.05)
_PREDICTOR = Sampling(temperature=1.0, top_k=50, top_p=0.8)


class SpokenRequest(Protocol):
    """The fields of a spoken request that determine its sampling."""

    @property
    def seed(self) -> int | None: ...

    @property
    def stage_sampling(self) -> SpeechSampling | None: ...


def thinker_sampling(request: ChatCompletionRequest, limits: Limits) -> Sampling:
    """The sampling of text. Raises OmniError (400) if the request asks for more tokens than the limits allow."""
    own = _own(request).thinker or StageSampling()
    return msgspec.structs.replace(
        _layered(_THINKER, own, request),
        seed=_seed("thinker", own, request),
        max_tokens=text_limit(request, limits.output_tokens),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        min_tokens=request.min_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=request.stop_token_ids or [],
        grammar=grammar_of(request),
        thinking_budget=request.thinking_budget
        if request.thinking_token_budget is None
        else request.thinking_token_budget,
    )


def talker_sampling(request: ChatCompletionRequest, limits: Limits) -> Sampling:
    """The sampling of the codes of codebook 0. Raises OmniError (400) if the request asks for more tokens than the
    limits allow.
    """
    own = _own(request).talker_ar or StageSampling()
    flat = StageSampling(
        temperature=request.talker_temperature,
        top_p=request.talker_top_p,
        top_k=request.talker_top_k,
        repetition_penalty=request.talker_repetition_penalty,
    )
    return msgspec.structs.replace(
        _layered(_TALKER, own, flat),
        seed=_seed("talker_ar", own, request),
        max_tokens=speech_limit(request, limits.speech_tokens),
        ignore_eos=bool(request.ignore_eos),
    )


def reading_sampling(request: SpokenRequest, limits: Limits) -> Sampling:
    """The sampling of the codes of codebook 0 for a text that is read aloud. Raises OmniError (400) as
    `talker_sampling` does.
    """
    own = (request.stage_sampling or SpeechSampling()).talker_ar or StageSampling()
    return msgspec.structs.replace(
        _layered(_TALKER, own),
        seed=_seed("talker_ar", own, request),
        max_tokens=reading_limit(own, limits.speech_tokens),
    )


def predictor_sampling(request: SpokenRequest, talker: Sampling) -> Sampling:
    """The sampling of residual codes. The default is greedy if the talker is greedy, as in the reference."""
    own = (request.stage_sampling or SpeechSampling()).code_predictor or FrameSampling()
    default = _PREDICTOR if talker.temperature else msgspec.structs.replace(_PREDICTOR, temperature=0.0)
    return msgspec.structs.replace(_layered(default, own), seed=_seed("code_predictor", own, request))


def _own(request: ChatCompletionRequest) -> SamplingByStage:
    return request.stage_sampling or SamplingByStage()


def _layered(default: Sampling, *layers: FrameSampling) -> Sampling:
    """A copy of `default` with the fields that `layers` set. If several elements of `layers` set a field, the first of
    these elements determines its value. A field that no element sets keeps its default.

    A `top_p` of 0 leaves only the most likely token, so it is the same as a temperature of 0.
    """
    given = {
        name: value
        for layer in reversed(layers)
        for name in StageSampling.__struct_fields__
        if (value := getattr(layer, name, None)) is not None
    }
    if "top_k" in given:
        given["top_k"] = max(given["top_k"], 0)
    if given.get("top_p") == 0:
        given |= {"temperature": 0.0, "top_p": 1.0}
    return msgspec.structs.replace(default, **given)


def _seed(stage: str, own: FrameSampling, request: SpokenRequest) -> int | None:
    """The stage's own seed, or a seed that is derived from the request's seed.

    The thinker uses the request's seed unchanged. The other stages use the first eight bytes of SHA-256 of
    ``STAGE:SEED`` (big-endian), so that no two stages draw the same random numbers. The sign bit is always cleared:
    OpenAI allows negative seeds, but random generators do not.
    """
    if own.seed is not None:
        return own.seed & _MOST_SEED
    if request.seed is None:
        return None
    seed = request.seed & _MOST_SEED
    if stage == "thinker":
        return seed
    digest = hashlib.sha256(f"{stage}:{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & _MOST_SEED
