"""Reads the body of `POST /v1/audio/speech` as a strict struct, and turns it into the request for the pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

from gateway.api.body_fields import BodyFields
from gateway.api.field_errors import FieldErrors, fields_of, invalid
from gateway.api.sampling import predictor_sampling, reading_sampling
from gateway.api.schema import (
    EXTRA,
    AudioFormat,
    FrameSampling,
    NonEmpty,
    Seed,
    SpeechSampling,
    StageSampling,
)
from gateway.api.voices import Voices
from gateway.bodies.json_body import JsonBody
from gateway.bodies.reader import text_too_large
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import bad_request
from stages.messages import SpeechOptions, SpeechRequest

LONGEST_INSTRUCTIONS = 4096
"""Maximum number of characters of `instructions`, as in the OpenAI API."""

StreamFormat = Literal["audio", "sse"]


class VoiceName(Struct, forbid_unknown_fields=True):
    """A voice as an object. OpenAI's clients send custom voices in this form."""

    id: str


class SpeechBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The request body.

    In the talker's prompt, a turn of the user comes before the text. This turn contains `instructions`. Without
    `instructions`, the prompt has no turn of the user.
    """

    input: NonEmpty
    model: str | None = None
    voice: str | VoiceName | None = None
    instructions: Annotated[str, Meta(max_length=LONGEST_INSTRUCTIONS)] | None = None
    response_format: AudioFormat | None = None
    stream_format: StreamFormat | None = None
    speed: Annotated[float, Meta(extra_json_schema={"enum": [1]})] | None = None
    seed: Seed | None = None
    stage_sampling: SpeechSampling | None = None


IGNORED = frozenset({"stream", "user"})
"""Fields that are accepted and ignored. A response is always streamed, and `user` has no effect on the answer."""

_ONLY_CHECKPOINT = (
    "this server speaks only with the voices of its checkpoint; 'GET /v1/audio/voices' lists these voices"
)
_USE_SAMPLING = "use 'stage_sampling', which sets parameters for each stage"

# Fields of other speech servers that would change the answer; see `unserved_fields.REFUSED`.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "language": (("Auto", "auto"), "the model detects the language from the text"),
    "max_new_tokens": ((), "use 'stage_sampling.talker_ar.max_tokens'"),
    "ref_audio": ((), _ONLY_CHECKPOINT),
    "ref_text": ((), _ONLY_CHECKPOINT),
    "sample_rate": ((24_000,), "the sampling rate is always 24000 Hz"),
    "task_type": ((), _ONLY_CHECKPOINT),
    "temperature": ((), _USE_SAMPLING),
    "top_k": ((), _USE_SAMPLING),
    "top_p": ((), _USE_SAMPLING),
}

_FIELDS = BodyFields(
    SpeechBody,
    FieldErrors(
        {
            "": fields_of(SpeechBody) | IGNORED | {EXTRA},
            EXTRA: fields_of(SpeechBody) | IGNORED,
            "voice": fields_of(VoiceName),
            "stage_sampling": fields_of(SpeechSampling),
            "talker_ar": fields_of(StageSampling),
            "code_predictor": fields_of(FrameSampling),
        },
        {"response_format": get_args(AudioFormat), "stream_format": get_args(StreamFormat)},
        {},
    ),
    ignored=IGNORED,
    refused=REFUSED,
)


class SpokenText(Struct, frozen=True):
    """The contents of a request body.

    Attributes:
        request: The request for the entry stage.
        audio_format: Format of the sound.
        events: Whether the sound is sent as server-sent events. If False, the response body is the sound itself.
    """

    request: SpeechRequest
    audio_format: AudioFormat
    events: bool


def read_speech_request(body: JsonBody, voices: Voices | None, limits: Limits) -> SpokenText:
    """The request that `body` contains.

    Args:
        voices: Voices that the server can speak with; None if the server does not speak.
        limits: Limits on the length of texts and speech.

    Raises:
        OmniError: 400 if a field is wrong (with the path of the field), if the server does not speak, or if the text is
            too long; 413 ``text_too_large`` if the body is too large.
    """
    if len(body.outline) + sum(len(string.content) for string in body.strings.values()) > limits.text_bytes:
        raise text_too_large(limits.text_bytes, None)
    body.restore(body.strings.keys())
    sent = _FIELDS.read(body)
    if voices is None:
        raise bad_request("This server does not speak.", code="unsupported_value")
    if not sent.input.strip():
        raise invalid("input", "it has no words")
    if len(sent.input) > limits.speech_characters:
        message = (
            f"Invalid 'input': it has {len(sent.input)} characters, but only {limits.speech_characters} are allowed."
        )
        raise bad_request(message, param="input", code="text_too_long")
    if sent.speed not in (None, 1):
        raise bad_request(
            "'speed' must be 1: the model decides how fast it speaks.", param="speed", code="unsupported_value"
        )
    named = sent.response_format or "mp3"
    talker = reading_sampling(sent, limits)
    return SpokenText(
        SpeechRequest(
            text=sent.input,
            instructions=(sent.instructions or "").strip(),
            speech=SpeechOptions(
                speaker=voices.find(sent.voice.id if isinstance(sent.voice, VoiceName) else sent.voice, "voice"),
                talker=talker,
                predictor=predictor_sampling(sent, talker),
            ),
        ),
        audio_format="pcm16" if named == "pcm" else named,
        events=sent.stream_format == "sse",
    )
