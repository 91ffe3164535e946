"""Turns a validated request into the pipeline's `ChatRequest`. The media are loaded later."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from msgspec import Struct

from gateway.api import schema
from gateway.api.content_parts import PartMedium, has_scheme, medium_in
from gateway.api.file_kinds import kind_of_file
from gateway.api.media_options import clip_options, options_of_clip, size_of_picture
from gateway.api.sampling import predictor_sampling, talker_sampling, thinker_sampling
from gateway.api.schema import ChatCompletionRequest
from gateway.api.tools import earlier_calls, tool_use
from gateway.api.voices import Voices
from gateway.bodies.json_body import LongString
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import bad_request
from stages.messages import (
    ChatRequest,
    MediaRef,
    Modality,
    PictureSize,
    SpeechOptions,
    Text,
    TextOutput,
    Turn,
    VideoOptions,
)


class MediaSource(Struct, frozen=True):
    """One media item of a request before it is loaded.

    Attributes:
        kind: Modality that the client declared.
        value: If `form` is ``address``, the address of the item (URL or path). If `form` is ``base64``, the encoded
            file itself. A long string is base64 or a data URL.
        param: Request field that contained the item.
        form: Whether `value` is an address or an encoded file.
        frames: The pictures of a clip that is sent as a list of pictures. In this case, `value` is empty. In all other
            cases, `frames` is empty.
        size: Limits on the size of a picture; None keeps the limits of the checkpoint's processor.
        video: Options for a clip. None means that the options of the request apply.
    """

    kind: Modality
    value: str | LongString
    param: str
    form: Literal["address", "base64"] = "address"
    frames: tuple[MediaSource, ...] = ()
    size: PictureSize | None = None
    video: VideoOptions | None = None


def convert(
    request: ChatCompletionRequest,
    voices: Voices | None,
    limits: Limits,
    long_strings: Mapping[str, LongString] = MappingProxyType({}),
) -> tuple[ChatRequest, list[MediaSource]]:
    """Returns two values: the request for the entry stage, and the sources of its media, in order. The `media` of the
    request are still empty.

    Media in content parts keep their position in the message. Media in the top-level lists come at the beginning of the
    last user message: images, then videos, then audios.

    Args:
        voices: Voices that the server can speak with; None if the server does not speak.
        limits: Bounds on the length of answers.
        long_strings: The long strings of the request, keyed by their markers. In `request`, a marker is in the place of
            each long string.

    Raises:
        OmniError: 400 in these cases: there is a top-level list but no user message; a file is not a picture, a sound
            or a clip; options contradict each other; the request asks for speech or a voice that the server does not
            have; the request exceeds the limits.
    """
    reader = _PartReader(request, long_strings)
    sources: list[MediaSource] = []
    turns: list[Turn] = []
    last_user = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=None)
    listed = _listed(request, long_strings)
    if listed and last_user is None:
        raise bad_request(
            "The media in 'images', 'audios' and 'videos' need a user message; add one to 'messages'.",
            param=listed[0].param.partition("[")[0],
            code="invalid_value",
        )
    for index, message in enumerate(request.messages):
        turn = Turn(role=message.role, content=[], reasoning=_reasoning(message))
        if index == last_user:
            for source in listed:
                turn.content.append(MediaRef(len(sources)))
                sources.append(source)
        _add_content(turn, message, f"messages[{index}].content", sources, reader)
        if isinstance(message, schema.AssistantMessage):
            turn.calls = earlier_calls(message, f"messages[{index}]", limits)
        turns.append(turn)
    chat = ChatRequest(
        turns=turns,
        media=[],
        video=reader.clips,
        thinker=thinker_sampling(request, limits),
        text=_text_output(request),
        speech=_speech(request, voices, limits),
        thinking=_thinking(request),
        tools=tool_use(request),
    )
    return chat, sources


def _listed(request: ChatCompletionRequest, long_strings: Mapping[str, LongString]) -> list[MediaSource]:
    lists: tuple[tuple[str, Modality, list[str] | None], ...] = (
        ("images", "image", request.images),
        ("videos", "video", request.videos),
        ("audios", "audio", request.audios),
    )
    return [
        MediaSource(
            kind,
            long_strings.get(address, address),
            f"{name}[{index}]",
            size=size_of_picture(None, f"{name}[{index}]", request) if kind == "image" else None,
        )
        for name, kind, addresses in lists
        for index, address in enumerate(addresses or ())
    ]


def _add_content(
    turn: Turn,
    message: schema.ChatMessage,
    param: str,
    sources: list[MediaSource],
    reader: _PartReader,
) -> None:
    content = message.content
    if isinstance(message, schema.AssistantMessage):
        spoken = message.audio.transcript if message.audio else None
        if not content and spoken is not None:  # some clients send an empty content with the audio
            content = spoken
        elif content is None:
            content = message.refusal or ""  # an answer that has only calls may have no text
    assert content is not None  # validation ensures this
    if isinstance(content, str):
        turn.content.append(Text(content))
        return
    for index, part in enumerate(content):
        match part:
            case schema.TextPart() | schema.InputTextPart():
                turn.content.append(Text(part.text))
            case schema.RefusalPart():
                turn.content.append(Text(part.refusal))
            case _:
                turn.content.append(MediaRef(len(sources)))
                sources.append(reader.source(part, f"{param}[{index}]"))


class _PartReader:
    """Makes the sources of the media in content parts.

    Attributes:
        clips: The options for clips whose content parts have no options.
    """

    def __init__(self, request: ChatCompletionRequest, long_strings: Mapping[str, LongString]) -> None:
        self.clips = clip_options(request)
        self._request = request
        self._long_strings = long_strings

    def source(self, part: schema.Part, param: str) -> MediaSource:
        """The source of the media item in a part. Raises OmniError as `convert` does."""
        medium = medium_in(part)
        assert medium is not None  # the other parts are text
        value = self._long_strings.get(medium.value, medium.value)
        field = f"{param}.{medium.field}"
        frames = tuple(
            MediaSource("image", self._long_strings.get(frame, frame), f"{field}[{index}]")
            for index, frame in enumerate(medium.frames)
        )
        kind = medium.kind or kind_of_file(value, _filename(part), field)
        return MediaSource(
            kind,
            value,
            field,
            form=_form(medium, value),
            frames=frames,
            size=size_of_picture(part, param, self._request) if kind == "image" else None,
            video=options_of_clip(part, param, self.clips) if kind == "video" else None,
        )


def _filename(part: schema.Part) -> str | None:
    return part.file.filename if isinstance(part, schema.FilePart) else None


def _form(medium: PartMedium, value: str | LongString) -> Literal["address", "base64"]:
    return "base64" if medium.may_be_base64 and not has_scheme(value) else "address"


def _speech(request: ChatCompletionRequest, voices: Voices | None, limits: Limits) -> SpeechOptions | None:
    if "audio" not in (request.modalities or ()):
        return None
    if voices is None:
        raise bad_request(
            '\'modalities\' contains "audio", but this server does not speak; send ["text"].',
            param="modalities",
            code="unsupported_value",
        )
    talker = talker_sampling(request, limits)
    return SpeechOptions(
        speaker=voices.choose(request),
        talker=talker,
        predictor=predictor_sampling(request, talker),
        streamed=bool(request.stream),
    )


def _reasoning(message: schema.ChatMessage) -> str | None:
    if not isinstance(message, schema.AssistantMessage):
        return None
    return _first(message.reasoning_content, message.reasoning)


def _thinking(request: ChatCompletionRequest) -> bool | None:
    """Whether the model should reason; None means that the chat template decides."""
    options = request.chat_template_kwargs
    return _first(options and options.enable_thinking, False if request.reasoning_effort == "none" else None)


def _text_output(request: ChatCompletionRequest) -> TextOutput:
    stop = request.stop or []
    return TextOutput(
        stop=[stop] if isinstance(stop, str) else stop,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        skip_special_tokens=_first(request.skip_special_tokens, True),
        return_token_ids=_first(request.return_token_ids, False),
        separate_reasoning=_first(request.separate_reasoning, True),
        stream=bool(request.stream),
        choices=request.n or 1,
    )


def _first(*values: Any) -> Any:
    """The first value that was given."""
    return next((value for value in values if value is not None), None)
