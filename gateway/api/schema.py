"""The request body of `POST /v1/chat/completions` as strict structs, with types and ranges of all fields.

`validation.parse` reads a body into `ChatCompletionRequest`. A null field counts as missing. Fields that the OpenAI
API defines and this server does not support are listed in the module `unserved_fields`. Fields of messages and parts
that do not change any answer are listed in `companions`.
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
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}(?!\n)$")]
MOST_TOOLS = 128
"""Maximum number of tools in a request, and of calls in a message."""
FramesPerSecond = Annotated[float, Meta(ge=0.01, le=240)]
FrameCount = Annotated[int, Meta(ge=1, le=10_000)]

# `pcm` is another spelling of `pcm16`.
AudioFormat = Literal["wav", "pcm16", "pcm", "flac", "mp3", "opus", "aac"]

EXTRA = "extra_body"
"""The object `extra_body`, whose fields count as fields of the request.

OpenAI's Python client has an argument `extra_body` and merges it into the body. Other clients send the object itself.
"""


class _Strict(Struct, forbid_unknown_fields=True):
    """A JSON object in which unknown fields are an error."""


# --- options of media -------------------------------------------------------------------------------------------------


class PictureOptions(_Strict, kw_only=True):
    """Limits on the number of pixels of a resized picture."""

    min_pixels: Count | None = None
    max_pixels: Count | None = None


class ClipOptions(PictureOptions, kw_only=True):
    """Options for a clip. These options have the same meaning as the fields of the request whose names begin with
    `video_`.
    """

    fps: FramesPerSecond | None = None
    max_frames: FrameCount | None = None
    total_pixels: Count | None = None
    use_audio_in_video: bool | None = None


# --- messages ---------------------------------------------------------------------------------------------------------


class Address(_Strict):
    """The address of a media item: an http(s) or data URL, or a local path that the server allows.

    `detail` and `format` are accepted for clients of other servers and have no effect: the format is detected from the
    file.
    """

    url: NonEmpty
    detail: str | None = None
    format: str | None = None


class ImageAddress(Address):
    """The same object as OpenAI's ``image_url``. `detail` is accepted for OpenAI's clients. `detail` has no effect,
    because the model resizes all pictures by the same rule.
    """

    detail: Literal["auto", "low", "high", "original"] | None = None


class InputAudio(_Strict):
    """The same object as OpenAI's ``input_audio``: base64 of a sound file, or the URL of a sound file. `format` is
    accepted and has no effect: the format is detected from the content.
    """

    data: NonEmpty
    format: str | None = None


class FileContent(_Strict):
    """The same object as OpenAI's ``file``: base64 of a picture, a sound or a clip, or a data URL.

    The server determines the kind of the file from the media type in the data URL. If the media type does not show the
    kind, the server looks at the content of the file. In some formats, a file can contain a sound or a clip. For these
    formats, the ending of `filename` decides. `format` and `detail` are accepted and have no effect.
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
    """An earlier refusal. The model gets the refusal as text."""

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
    """A picture, as Qwen's examples send it."""

    image: NonEmpty


class QwenAudioPart(_Strict, tag_field="type", tag="audio"):
    """A sound, as Qwen's examples send it."""

    audio: NonEmpty


class QwenVideoPart(ClipOptions, kw_only=True, tag_field="type", tag="video"):
    """A clip, as Qwen's examples send it: its address, or a list of the addresses of its pictures. With a list, `fps`
    is the number of pictures for each second.
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
    """The `audio` of an earlier answer. While the server keeps the transcript, only the field `id` is needed."""

    id: str | None = None
    transcript: str | None = None
    data: str | None = None
    expires_at: int | None = None
    finish_reason: str | None = None


class EarlierFunction(_Strict):
    """The function of an earlier call. `arguments` is a string that contains a JSON object. An empty string counts as
    an empty object.
    """

    name: FunctionName
    arguments: str


class EarlierCall(_Strict):
    """A call of an earlier answer. The `id` is accepted, and the model does not get it."""

    function: EarlierFunction
    id: str | None = None
    type: Literal["function"] | None = None


class AssistantMessage(_Strict, tag_field="role", tag="assistant"):
    """An earlier answer that the client sends back as part of the conversation.

    The model gets one text: the first text in this list that is present.

    1. `content`. With a transcript, an empty `content` counts as missing.
    2. The transcript in `audio`.
    3. `refusal`, if `content` is missing or null.
    4. The transcript that the server keeps for the `id` in `audio`.

    After the text, the model gets `tool_calls`. The reasoning before the text is in `reasoning_content` or `reasoning`;
    the chat template decides whether the model gets the reasoning. `function_call` must be empty.
    """

    role: ClassVar[str] = "assistant"
    content: Content | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    refusal: str | None = None
    audio: EarlierSpeech | None = None
    tool_calls: Annotated[list[EarlierCall], Meta(max_length=MOST_TOOLS)] | None = None
    function_call: Annotated[dict[str, Any], Meta(extra_json_schema={"maxProperties": 0})] | None = None


class ToolMessage(_Strict, tag_field="role", tag="tool"):
    """The result of a tool; the chat template shows it to the model."""

    role: ClassVar[str] = "tool"
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


ChatMessage: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


# --- tools ------------------------------------------------------------------------------------------------------------


class FunctionDefinition(_Strict):
    """A function that the model may call. `parameters` is the JSON schema of its arguments.

    If `strict` is true, the arguments of a call are guaranteed to follow the schema.
    """

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Strict):
    function: FunctionDefinition
    type: Literal["function"] = "function"


class ChosenFunction(_Strict):
    name: FunctionName


class NamedTool(_Strict, tag_field="type", tag="function"):
    """The tool that the model must call, by its name."""

    function: ChosenFunction


class AllowedTool(_Strict):
    """A tool that the model may call, by its name."""

    function: ChosenFunction
    type: Literal["function"] = "function"


class AllowedTools(_Strict):
    """A selection of the tools. If `mode` is ``auto``, the model can call these tools or no tool. If `mode` is
    ``required``, the model must call one of these tools.
    """

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=MOST_TOOLS)]


class AllowedToolsChoice(_Strict, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


# --- sampling ---------------------------------------------------------------------------------------------------------


Temperature = Annotated[float, Meta(ge=0, le=2)]
# If `top_p` is 0, decoding is greedy.
TopP = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
RepetitionPenalty: TypeAlias = Annotated[float, Meta(ge=0.01, le=2)]


class FrameSampling(_Strict):
    """The sampling parameters for the residual codes of a frame, which the code predictor generates. The module
    `sampling` contains the defaults.

    A `top_k` of -1 or 0 means no limit.
    """

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None


class StageSampling(FrameSampling):
    """The sampling parameters of a stage that generates one token after the other."""

    repetition_penalty: RepetitionPenalty | None = None
    max_tokens: Count | None = None


class SpeechSampling(_Strict, kw_only=True):
    """The sampling of the stages that speak."""

    talker_ar: StageSampling | None = None
    code_predictor: FrameSampling | None = None


class SamplingByStage(SpeechSampling, kw_only=True):
    """Values that override the request's sampling for individual stages."""

    thinker: StageSampling | None = None


# --- the request ------------------------------------------------------------------------------------------------------


ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
# "none" switches reasoning off. The other efforts are accepted, and all have the same effect.
TokenBudget = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class AudioOutput(_Strict):
    """Voice and format of the speech. The fields have no effect if the request asks only for text.

    `chunks` sets the form of a streamed `wav`: with ``files``, each chunk is a file; with ``one_file``, all chunks
    together are one file.
    """

    voice: str | None = None
    format: AudioFormat | None = None
    chunks: Literal["files", "one_file"] | None = None


class TemplateOptions(_Strict):
    """Variables of the chat template. `add_generation_prompt` must be true, and `continue_final_message` false."""

    enable_thinking: bool | None = None
    add_generation_prompt: Annotated[bool, Meta(extra_json_schema={"enum": [True]})] | None = None
    continue_final_message: Annotated[bool, Meta(extra_json_schema={"enum": [False]})] | None = None


# --- grammars ---------------------------------------------------------------------------------------------------------

# Fields whose values are not normalised, because null has a meaning in a JSON schema.
VERBATIM = frozenset({"schema", "json", "guided_json", "format", "structures", "parameters"})

# A JSON schema, as an object or as JSON text.
SchemaOrText: TypeAlias = dict[str, Any] | NonEmpty
Choices = Annotated[list[str], Meta(min_length=1)]


class TextFormat(_Strict, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(_Strict, tag_field="type", tag="json_object"):
    """A JSON object."""


class NamedSchema(_Strict):
    """A JSON schema with a name. The model does not get the name and the description."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Strict, tag_field="type", tag="json_schema"):
    """A JSON text that conforms to a schema."""

    json_schema: NamedSchema


class StructuralTagFormat(_Strict, tag_field="type", tag="structural_tag"):
    """A text with tags. Each tag begins a part of the text, and each of these parts has its own grammar. A request
    contains either `structures` and `triggers`, or `format`.
    """

    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    at_least_one: bool | None = None
    format: dict[str, Any] | None = None


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat


class StructuredOutputs(_Strict):
    """A grammar, as clients of vLLM send it. Exactly one field may be set."""

    json: SchemaOrText | None = None
    json_object: bool | None = None
    regex: NonEmpty | None = None
    choice: Choices | None = None
    grammar: NonEmpty | None = None
    structural_tag: NonEmpty | None = None


# --- the request: output ----------------------------------------------------------------------------------------------


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
    reasoning_effort: ReasoningEffort | None = None
    separate_reasoning: bool | None = None
    thinking_token_budget: TokenBudget | None = None
    thinking_budget: TokenBudget | None = None

    tools: Annotated[list[FunctionTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

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
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: NonEmpty | None = None
    guided_choice: Choices | None = None
    guided_grammar: NonEmpty | None = None
    json_schema: NonEmpty | None = None
    regex: NonEmpty | None = None
    ebnf: NonEmpty | None = None
    structural_tag: NonEmpty | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
