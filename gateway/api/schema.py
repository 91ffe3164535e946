"""The request body of `POST /v1/chat/completions` as strict structs, with types and ranges of all fields.

`validation.parse` reads a body into `ChatCompletionRequest`. A null field counts as left out. Fields that the OpenAI
API defines and this server does not support are listed in the module `unserved_fields`. Fields of messages and parts
that no answer depends on are listed in `companions`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from msgspec import Meta, Struct

NonEmpty = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Addresses = list[NonEmpty]
FramesPerSecond = Annotated[float, Meta(ge=0.01, le=240)]
FrameCount = Annotated[int, Meta(ge=1, le=10_000)]

# `pcm` is another spelling of `pcm16`.
AudioFormat = Literal["wav", "pcm16", "pcm", "flac", "mp3", "opus", "aac"]

EXTRA = "extra_body"
"""An object whose fields count as fields of the request.

OpenAI's client in Python merges its argument of this name into the body; other clients send the object as it is.
"""


class _Strict(Struct, forbid_unknown_fields=True):
    """A JSON object in which unknown fields are an error."""


# --- options of media -------------------------------------------------------------------------------------------------


class PictureOptions(_Strict, kw_only=True):
    """Bounds on the pixels of a resized picture."""

    min_pixels: Count | None = None
    max_pixels: Count | None = None


class ClipOptions(PictureOptions, kw_only=True):
    """Options for a clip; they say the same as the fields of the request whose names begin with `video_`."""

    fps: FramesPerSecond | None = None
    max_frames: FrameCount | None = None
    total_pixels: Count | None = None
    use_audio_in_video: bool | None = None


# --- messages ---------------------------------------------------------------------------------------------------------


class Address(_Strict):
    """The address of a media item: an http(s) or data URL, or a local path that the server allows.

    `detail` and `format` are accepted for clients of other servers; the file's content decides.
    """

    url: NonEmpty
    detail: str | None = None
    format: str | None = None


class ImageAddress(Address):
    """As OpenAI's ``image_url``. `detail` is accepted for the sake of OpenAI's clients, but has no effect: the model
    has one resolution policy.
    """

    detail: Literal["auto", "low", "high", "original"] | None = None


class InputAudio(_Strict):
    """As OpenAI's ``input_audio``: base64 of a sound file, or its URL. `format` is accepted; the content decides."""

    data: NonEmpty
    format: str | None = None


class FileContent(_Strict):
    """As OpenAI's ``file``: base64 of a picture, a sound or a clip, or its data URL.

    The type in the data URL says which of the three it is, or else the content. `filename` decides where a container
    may be a sound or a clip. `format` and `detail` are accepted.
    """

    file_data: NonEmpty
    filename: str | None = None
    format: str | None = None
    detail: str | None = None


class TextPart(_Strict, tag_field="type", tag="text"):
    text: str


class InputTextPart(_Strict, tag_field="type", tag="input_text"):
    """Text as in OpenAI's Responses API."""

    text: str


class RefusalPart(_Strict, tag_field="type", tag="refusal"):
    """An earlier refusal; the model reads it as text."""

    refusal: str


class ImagePart(PictureOptions, kw_only=True, tag_field="type", tag="image_url"):
    image_url: ImageAddress | NonEmpty


class InputImagePart(PictureOptions, kw_only=True, tag_field="type", tag="input_image"):
    """A picture as in OpenAI's Responses API."""

    image_url: ImageAddress | NonEmpty
    detail: str | None = None


class AudioPart(_Strict, tag_field="type", tag="audio_url"):
    audio_url: Address | NonEmpty


class InputAudioPart(_Strict, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


class VideoPart(ClipOptions, kw_only=True, tag_field="type", tag="video_url"):
    video_url: Address | NonEmpty


class QwenImagePart(PictureOptions, kw_only=True, tag_field="type", tag="image"):
    """A picture in the form of Qwen's examples."""

    image: NonEmpty


class QwenAudioPart(_Strict, tag_field="type", tag="audio"):
    """A sound in the form of Qwen's examples."""

    audio: NonEmpty


class QwenVideoPart(ClipOptions, kw_only=True, tag_field="type", tag="video"):
    """A clip in the form of Qwen's examples: its address, or a list of the addresses of its pictures.

    With a list, `fps` is the number of pictures for each second.
    """

    video: NonEmpty | Annotated[Addresses, Meta(min_length=1)]


class FilePart(_Strict, tag_field="type", tag="file"):
    file: FileContent


Part: TypeAlias = (
    TextPart
    | ImagePart
    | InputAudioPart
    | AudioPart
    | VideoPart
    | QwenImagePart
    | QwenAudioPart
    | QwenVideoPart
    | FilePart
    | InputTextPart
    | InputImagePart
    | RefusalPart
)
Content: TypeAlias = str | list[Part]


class SystemMessage(_Strict, tag_field="role", tag="system"):
    role: ClassVar[str] = "system"
    content: Content
    name: str | None = None


class DeveloperMessage(_Strict, tag_field="role", tag="developer"):
    """OpenAI's newer name for a system message."""

    role: ClassVar[str] = "system"
    content: Content
    name: str | None = None


class UserMessage(_Strict, tag_field="role", tag="user"):
    role: ClassVar[str] = "user"
    content: Content
    name: str | None = None


class EarlierSpeech(_Strict):
    """The `audio` of an earlier answer. The `id` alone is enough while the server keeps the transcript."""

    id: str | None = None
    transcript: str | None = None
    data: str | None = None
    expires_at: int | None = None
    finish_reason: str | None = None


class AssistantMessage(_Strict, tag_field="role", tag="assistant"):
    """An earlier answer that the client sends back as part of the conversation.

    The model reads `content`, or else the transcript of `audio` (which its `id` may stand for), or else `refusal`.
    `tool_calls` and `function_call` must be empty.
    """

    role: ClassVar[str] = "assistant"
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    audio: EarlierSpeech | None = None
    tool_calls: Annotated[list[Any], Meta(extra_json_schema={"maxItems": 0})] | None = None
    function_call: Annotated[dict[str, Any], Meta(extra_json_schema={"maxProperties": 0})] | None = None


class ToolMessage(_Strict, tag_field="role", tag="tool"):
    """The result of a tool; the chat template shows it to the model."""

    role: ClassVar[str] = "tool"
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


ChatMessage: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


# --- sampling ---------------------------------------------------------------------------------------------------------


Temperature = Annotated[float, Meta(ge=0, le=2)]
# 0 is greedy.
TopP = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
RepetitionPenalty: TypeAlias = Annotated[float, Meta(ge=0.01, le=2)]


class FrameSampling(_Strict):
    """The sampling by which the code predictor chooses the residual codes of a frame. The module `sampling` has the
    defaults.

    A `top_k` of -1 or 0 means no limit.
    """

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None


class StageSampling(FrameSampling):
    """The sampling parameters of a stage that generates one token after the other."""

    repetition_penalty: RepetitionPenalty | None = None
    max_tokens: Count | None = None


class SamplingByStage(_Strict):
    """Overrides of the request's sampling for single stages."""

    thinker: StageSampling | None = None
    talker_ar: StageSampling | None = None
    code_predictor: FrameSampling | None = None


# --- the request ------------------------------------------------------------------------------------------------------


class AudioOutput(_Strict):
    """Voice and format of the speech; without effect when only text is asked for.

    `chunks` says what the chunks of a streamed `wav` are: a file each, or one file together.
    """

    voice: str | None = None
    format: AudioFormat | None = None
    chunks: Literal["files", "one_file"] | None = None


class TemplateOptions(_Strict):
    """Variables of the chat template. `add_generation_prompt` must be true, and `continue_final_message` false."""

    enable_thinking: bool | None = None
    add_generation_prompt: Annotated[bool, Meta(extra_json_schema={"enum": [True]})] | None = None
    continue_final_message: Annotated[bool, Meta(extra_json_schema={"enum": [False]})] | None = None


class StreamOptions(_Strict):
    """`include_obfuscation` is accepted for OpenAI's clients; this server does not obfuscate streams."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatCompletionRequest(StageSampling, kw_only=True):
    """The request body. The sampling fields of `StageSampling` are also top-level fields."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    model: str | None = None
    modalities: (
        Annotated[list[Literal["text", "audio"]], Meta(min_length=1, extra_json_schema={"uniqueItems": True})] | None
    ) = None
    audio: AudioOutput | None = None
    voice: str | None = None
    speaker: str | None = None

    images: Addresses | None = None
    audios: Addresses | None = None
    videos: Addresses | None = None
    video_fps: FramesPerSecond | None = None
    video_max_frames: FrameCount | None = None
    video_min_pixels: Count | None = None
    video_max_pixels: Count | None = None
    video_total_pixels: Count | None = None
    use_audio_in_video: bool | None = None
    mm_processor_kwargs: ClipOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None

    max_completion_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Meta(ge=-100, le=100)]],
            Meta(extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,10}$"}}),
        ]
        | None
    ) = None
    stage_sampling: SamplingByStage | None = None
    talker_temperature: Temperature | None = None
    talker_top_p: TopP | None = None
    talker_top_k: TopK | None = None
    talker_repetition_penalty: RepetitionPenalty | None = None
    talker_max_new_tokens: Count | None = None

    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    n: Annotated[int, Meta(extra_json_schema={"enum": [1]})] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
