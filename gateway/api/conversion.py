"""Turns a validated request into the pipeline's `ChatRequest`, with its media still to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct

from gateway.api import schema
from gateway.api.sampling import predictor_sampling, talker_sampling, thinker_sampling
from gateway.api.schema import ChatCompletionRequest
from gateway.api.voices import Voices
from gateway.bodies.json_body import LongString
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import bad_request
from stages.messages import ChatRequest, MediaRef, Modality, SpeechOptions, Text, TextOutput, Turn, VideoOptions


class MediaSource(Struct, frozen=True):
    """One media item of a request before it is loaded.

    Attributes:
        kind: Modality that the client declared.
        value: Address of the item (URL or path); if `form` is ``base64``, the encoded file itself. A long string is
            base64 or a data URL.
        param: Request field that contained the item.
        form: Whether `value` is an address or an encoded file.
        frames: The pictures of a clip that is sent as a list of pictures; `value` is then empty. Else there are none.
        fps: Number of those pictures for each second; None if the client does not say.
    """

    kind: Modality
    value: str | LongString
    param: str
    form: Literal["address", "base64"] = "address"
    frames: tuple[MediaSource, ...] = ()
    fps: float | None = None


def convert(
    request: ChatCompletionRequest,
    voices: Voices | None,
    limits: Limits,
    long_strings: Mapping[str, LongString] = MappingProxyType({}),
) -> tuple[ChatRequest, list[MediaSource]]:
    """The request for the entry stage, with `media` still empty, and the sources to load its media from, in order.

    Media in content parts keep their place in the message. Media in the top-level lists come at the beginning of the
    last user message: images, then videos, then audios.

    Args:
        voices: Voices that the server can speak with; None if it does not speak.
        limits: Bounds on the length of answers.
        long_strings: The strings that have only a marker in `request`, by marker.

    Raises:
        OmniError: 400 if there is a top-level list but no user message, if the request asks for speech or a voice that
            the server does not have, or if it asks for more than the limits allow.
    """
    sources: list[MediaSource] = []
    turns: list[Turn] = []
    last_user = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=None)
    listed = _listed(request, long_strings)
    if listed and last_user is None:
        raise bad_request(
            "Top-level media need a user message; add one to 'messages'.",
            param=listed[0].param.partition("[")[0],
            code="invalid_value",
        )
    for index, message in enumerate(request.messages):
        turn = Turn(role=message.role, content=[])
        if index == last_user:
            for source in listed:
                turn.content.append(MediaRef(len(sources)))
                sources.append(source)
        _add_content(turn, message, f"messages[{index}].content", sources, long_strings)
        turns.append(turn)
    chat = ChatRequest(
        turns=turns,
        media=[],
        video=_video(request),
        thinker=thinker_sampling(request, limits),
        text=_text_output(request),
        speech=_speech(request, voices, limits),
    )
    return chat, sources


def _listed(request: ChatCompletionRequest, long_strings: Mapping[str, LongString]) -> list[MediaSource]:
    lists: tuple[tuple[str, Modality, list[str] | None], ...] = (
        ("images", "image", request.images),
        ("videos", "video", request.videos),
        ("audios", "audio", request.audios),
    )
    return [
        MediaSource(kind, long_strings.get(address, address), f"{name}[{index}]")
        for name, kind, addresses in lists
        for index, address in enumerate(addresses or ())
    ]


def _add_content(
    turn: Turn,
    message: schema.ChatMessage,
    param: str,
    sources: list[MediaSource],
    long_strings: Mapping[str, LongString],
) -> None:
    content = message.content
    if isinstance(message, schema.AssistantMessage):
        spoken = message.audio.transcript if message.audio else None
        if not content and spoken is not None:  # some clients send an empty content with the audio
            content = spoken
        elif content is None:
            content = message.refusal
    assert content is not None  # validation ensures this
    if isinstance(content, str):
        turn.content.append(Text(content))
        return
    for index, part in enumerate(content):
        if isinstance(part, schema.TextPart):
            turn.content.append(Text(part.text))
        else:
            turn.content.append(MediaRef(len(sources)))
            sources.append(_source(part, f"{param}[{index}]", long_strings))


def _source(
    part: schema.ImagePart | schema.AudioPart | schema.InputAudioPart | schema.VideoPart | schema.FramesPart,
    param: str,
    long_strings: Mapping[str, LongString],
) -> MediaSource:
    def source(kind: Modality, value: str, field: str, form: Literal["address", "base64"] = "address") -> MediaSource:
        return MediaSource(kind, long_strings.get(value, value), f"{param}.{field}", form)

    match part:
        case schema.ImagePart(image_url=address):
            return source("image", address.url, "image_url.url")
        case schema.VideoPart(video_url=address):
            return source("video", address.url, "video_url.url")
        case schema.AudioPart(audio_url=address):
            return source("audio", address.url, "audio_url.url")
        case schema.InputAudioPart(input_audio=sound):
            return source("audio", sound.data, "input_audio.data", "base64")
        case schema.FramesPart(video=addresses, fps=fps):
            frames = tuple(source("image", address, f"video[{index}]") for index, address in enumerate(addresses))
            return MediaSource("video", "", f"{param}.video", frames=frames, fps=fps)


def _speech(request: ChatCompletionRequest, voices: Voices | None, limits: Limits) -> SpeechOptions | None:
    if "audio" not in (request.modalities or ()):
        return None
    if voices is None:
        raise bad_request(
            "'modalities' asks for audio, but this server does not speak; ask for [\"text\"].",
            param="modalities",
            code="unsupported_value",
        )
    talker = talker_sampling(request, limits)
    return SpeechOptions(speaker=voices.choose(request), talker=talker, predictor=predictor_sampling(request, talker))


def _text_output(request: ChatCompletionRequest) -> TextOutput:
    stop = request.stop or []
    return TextOutput(
        stop=[stop] if isinstance(stop, str) else stop,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        skip_special_tokens=_first(request.skip_special_tokens, True),
        return_token_ids=_first(request.return_token_ids, False),
        stream=bool(request.stream),
    )


def _video(request: ChatCompletionRequest) -> VideoOptions:
    default = VideoOptions()
    return VideoOptions(
        fps=_first(request.video_fps, default.fps),
        max_frames=_first(request.video_max_frames, default.max_frames),
        min_pixels=request.video_min_pixels,
        max_pixels=request.video_max_pixels,
        total_pixels=request.video_total_pixels,
        use_audio=bool(request.use_audio_in_video),
    )


def _first(*values: Any) -> Any:
    """The first value that was given."""
    return next((value for value in values if value is not None), None)
