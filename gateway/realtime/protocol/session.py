"""The current settings of a session, and how an update changes them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct

from gateway.api import schema, validation
from gateway.api.conversion import convert
from gateway.api.field_errors import invalid, unsupported
from gateway.api.responses_api.chat_form import Places, tool_choice_form, tool_form
from gateway.api.responses_api.schema import FlatTool, ToolChoice
from gateway.api.schema import ChatCompletionRequest
from gateway.api.voices import Voices
from gateway.realtime.protocol.client_events import (
    AnswerOptions,
    AudioOptions,
    SessionOptions,
    SoundFormatOption,
    Transcription,
    Truncation,
    VoiceById,
)
from gateway.realtime.sounds.sound_formats import RATES, SoundFormat
from gateway.realtime.turns.turn_options import ServerVad, TurnOptions, read_turn_options
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import ErrorInfo, OmniError
from stages.messages import ChatRequest

_AS_IT_IS = 1.0  # the only speed of speech


class Session(Struct, frozen=True, kw_only=True):
    """The settings of one session, or of one response.

    Attributes:
        spoken: Whether answers are speech, with a transcript. If False, answers are text.
        voice: Name of the voice; None if the server does not speak.
        temperature, seed, stage_sampling, ignore_eos: The same fields as in chat completions.
        truncation: The rule for a prompt that is too long. The rule determines whether the oldest items are left out,
            and how many of them.
        include: Stored and shown in events; has no other effect.
    """

    spoken: bool
    voice: str | None
    instructions: str = ""
    tools: tuple[FlatTool, ...] = ()
    tool_choice: ToolChoice = "auto"
    max_output_tokens: int | Literal["inf"] = "inf"
    parallel_tool_calls: bool = True
    temperature: float | None = None
    seed: int | None = None
    stage_sampling: schema.SamplingByStage | None = None
    ignore_eos: bool | None = None
    input_format: SoundFormat = "audio/pcm"
    output_format: SoundFormat = "audio/pcm"
    noise_reduction: Any = None
    transcription: Transcription | None = None
    turn_detection: TurnOptions | None = ServerVad()
    truncation: Truncation = "auto"
    include: tuple[str, ...] = ()


class SessionRules:
    """Applies updates to sessions of one server.

    Args:
        voices: Voices of the pipeline; None if the pipeline does not speak.
        limits: Bounds on the length of answers.
    """

    def __init__(self, voices: Voices | None, limits: Limits) -> None:
        self._voices = voices
        self._limits = limits

    def default(self) -> Session:
        """The settings of a session whose client has not changed any setting."""
        return Session(spoken=self._voices is not None, voice=self._voices.default if self._voices else None)

    def update(self, session: Session, options: SessionOptions, path: str = "session") -> Session:
        """`session` after an update. A field that is null gets its default.

        Raises:
            OmniError: 400 with the path of the field that is wrong.
        """
        changed = self._answer_changes(options, path)
        if options.include is not UNSET:
            changed["include"] = tuple(options.include or ())
        if options.truncation is not UNSET:
            changed["truncation"] = "auto" if options.truncation is None else options.truncation
        heard = options.audio.input if options.audio else None
        if heard is not None:
            if heard.format is not UNSET:
                changed["input_format"] = _format(heard.format, f"{path}.audio.input.format")
            if heard.noise_reduction is not UNSET:
                changed["noise_reduction"] = heard.noise_reduction
            if heard.transcription is not UNSET:
                changed["transcription"] = heard.transcription
            if heard.turn_detection is not UNSET:
                changed["turn_detection"] = read_turn_options(
                    heard.turn_detection, session.turn_detection, f"{path}.audio.input.turn_detection"
                )
        return self._checked(session, changed, path)

    def for_response(self, session: Session, options: AnswerOptions | None) -> Session:
        """The settings of one response of `session`. Raises OmniError as `update` does."""
        if options is None:
            return session
        return self._checked(session, self._answer_changes(options, "response"), "response")

    def chat(self, session: Session, path: str = "session") -> ChatRequest:
        """The request for an answer with these settings. The caller adds the conversation.

        Raises:
            OmniError: 400 with the path of the setting that the pipeline cannot serve.
        """
        request = ChatCompletionRequest(
            messages=[schema.UserMessage("")],  # replaced by the conversation
            modalities=["text", "audio"] if session.spoken else ["text"],
            audio=schema.AudioOutput(voice=session.voice) if session.spoken else None,
            tools=[tool_form(tool) for tool in session.tools] or None,
            tool_choice=tool_choice_form(session.tool_choice) if session.tools else None,
            parallel_tool_calls=session.parallel_tool_calls,
            max_completion_tokens=None if session.max_output_tokens == "inf" else session.max_output_tokens,
            temperature=session.temperature,
            seed=session.seed,
            stage_sampling=session.stage_sampling,
            ignore_eos=session.ignore_eos,
            stream=True,
            return_token_ids=True,
        )
        try:
            validation.check(request)
            chat, _ = convert(request, self._voices, self._limits)
        except OmniError as error:
            raise OmniError(_placed(error.info, path)) from error
        chat.turns = []
        return chat

    def _checked(self, session: Session, changed: dict[str, Any], path: str) -> Session:
        session = msgspec.structs.replace(session, **changed)
        self.chat(session, path)
        return session

    def _answer_changes(self, options: AnswerOptions, path: str) -> dict[str, Any]:
        """The fields of a `Session` that `options` changes, with their new values."""
        if options.prompt:
            raise unsupported(f"{path}.prompt", "this server does not store prompts; send the text in 'instructions'")
        changed: dict[str, Any] = {}
        for name in ("instructions", "tool_choice", "max_output_tokens", "parallel_tool_calls"):
            value = getattr(options, name)
            if value is not UNSET:
                changed[name] = _DEFAULTS[name] if value is None else value
        for name in ("temperature", "seed", "stage_sampling", "ignore_eos"):
            if getattr(options, name) is not UNSET:
                changed[name] = getattr(options, name)
        if options.tools is not UNSET:
            changed["tools"] = tuple(options.tools or ())
            if not options.tools and options.tool_choice is UNSET:
                changed["tool_choice"] = "auto"  # the old choice may require a tool that the session no longer has
        if options.output_modalities is not UNSET:
            wanted = options.output_modalities or (["audio"] if self._voices else ["text"])
            if "audio" in wanted and self._voices is None:
                raise invalid(f"{path}.output_modalities", 'this server does not speak; send ["text"]')
            changed["spoken"] = "audio" in wanted
        changed |= self._output_changes(options.audio, path)
        return changed

    def _output_changes(self, audio: AudioOptions | None, path: str) -> dict[str, Any]:
        output = audio.output if audio else None
        changed: dict[str, Any] = {}
        if output is None:
            return changed
        if output.format is not UNSET:
            changed["output_format"] = _format(output.format, f"{path}.audio.output.format")
        if output.voice is not UNSET:
            voice = output.voice.id if isinstance(output.voice, VoiceById) else output.voice
            changed["voice"] = self._voice(voice)
        if output.speed is not UNSET and output.speed not in (None, _AS_IT_IS):
            raise invalid(f"{path}.audio.output.speed", "this server speaks only at the speed 1.0")
        return changed

    def _voice(self, name: str | None) -> str | None:
        """The voice with this name. If there is no such voice, returns the default voice, because some clients always
        ask for one of OpenAI's voices.
        """
        if self._voices is None:
            return None
        return name.lower() if name is not None and name.lower() in self._voices.names else self._voices.default


_DEFAULTS = {name: getattr(Session(spoken=False, voice=None), name) for name in Session.__struct_fields__}


def session_object(session: Session, session_id: str, model: str, expires_at: int) -> dict[str, Any]:
    """The current settings, as events show them."""
    shown = {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "output_modalities": modalities(session),
        "instructions": session.instructions,
        "tools": [_present(msgspec.to_builtins(tool)) for tool in session.tools],
        "max_output_tokens": session.max_output_tokens,
        "truncation": session.truncation,
        "expires_at": expires_at,
        "audio": {
            "input": {
                "format": format_object(session.input_format),
                "noise_reduction": session.noise_reduction,
                "transcription": session.transcription and _present(msgspec.to_builtins(session.transcription)),
                "turn_detection": msgspec.to_builtins(session.turn_detection),
            },
            "output": output_object(session),
        },
    }
    if isinstance(session.tool_choice, str):  # some clients end their session if this field is an object
        shown["tool_choice"] = session.tool_choice
    return shown


def modalities(session: Session) -> list[str]:
    """The kind of the answers, in the terms of the API. For spoken answers, the API has only ``audio``, although the
    answers have a transcript.
    """
    return ["audio"] if session.spoken else ["text"]


def output_object(session: Session) -> dict[str, Any]:
    """The format and the voice of speech."""
    shown: dict[str, Any] = {"format": format_object(session.output_format), "speed": _AS_IT_IS}
    if session.voice is not None:
        shown["voice"] = session.voice
    return shown


def format_object(sound_format: SoundFormat) -> dict[str, Any]:
    """A sound format, as events show it. The rate of G.711 is left out, because it is always the same."""
    return (
        {"type": sound_format, "rate": RATES[sound_format]} if sound_format == "audio/pcm" else {"type": sound_format}
    )


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _format(option: SoundFormatOption | None, path: str) -> SoundFormat:
    if option is None:
        return "audio/pcm"
    if option.rate not in (None, RATES[option.type]):
        raise invalid(f"{path}.rate", f"the rate of '{option.type}' is always {RATES[option.type]} samples per second")
    return option.type


def _placed(info: ErrorInfo, path: str) -> ErrorInfo:
    """`info` with the path in the event instead of the path in a chat request."""
    if info.param is None:
        return info
    param = Places((), ()).path(info.param)
    place = f"{path}.{param}"
    return msgspec.structs.replace(info, param=place, message=info.message.replace(info.param, place))
