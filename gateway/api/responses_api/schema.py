"""The request body of `POST /v1/responses` as strict structs, with types and ranges of all fields.

`reading.read` reads a body into `ResponsesRequest`. A field with the value null is treated as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from gateway.api import schema
from gateway.api.schema import NonEmpty


class _Strict(Struct, forbid_unknown_fields=True):
    """A JSON object in which unknown fields are an error."""


# --- input items ------------------------------------------------------------------------------------------------------


class OutputTextPart(_Strict, tag_field="type", tag="output_text"):
    """Text of an earlier answer."""

    text: str


class InputFilePart(_Strict, tag_field="type", tag="input_file"):
    """A picture, a sound or a clip. Exactly one of `file_data` and `file_url` must be set. Each of these two fields may
    contain base64 or a data URL.
    """

    file_data: NonEmpty | None = None
    file_url: NonEmpty | None = None
    filename: str | None = None
    detail: str | None = None


Part: TypeAlias = (
    schema.InputTextPart
    | schema.InputImagePart
    | schema.InputAudioPart
    | InputFilePart
    | OutputTextPart
    | schema.RefusalPart
    | schema.TextPart
    | schema.ImagePart
    | schema.AudioPart
    | schema.VideoPart
)
"""The parts of OpenAI's Responses API, and the parts of chat completions for pictures, sounds and clips."""


class MessageItem(_Strict, tag_field="type", tag="message"):
    """A message; `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class FunctionCallItem(_Strict, tag_field="type", tag="function_call"):
    """An earlier call of a function by the model."""

    call_id: NonEmpty
    name: schema.FunctionName
    arguments: str


class FunctionCallOutputItem(_Strict, tag_field="type", tag="function_call_output"):
    """The result of an earlier call of a function."""

    call_id: NonEmpty
    output: str | list[Part]


class ReasoningPart(_Strict):
    """Reasoning as the model wrote it."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class SummaryPart(_Strict):
    """A summary of reasoning."""

    text: str
    type: Literal["summary_text"] = "summary_text"


class ReasoningItem(_Strict, tag_field="type", tag="reasoning"):
    """The reasoning of an earlier answer. The answer itself is the next item. The chat template decides whether the
    model gets `content` again. `summary` and `encrypted_content` are not read.
    """

    summary: list[SummaryPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None


Item: TypeAlias = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem

# Fields that clients send back with items and texts of earlier answers. These fields do not change the answer.
# `companions` lists the fields that all parts may have.
ITEM_COMPANIONS = frozenset({"created_by", "id", "phase", "status"})
OUTPUT_TEXT_COMPANIONS = frozenset({"logprobs"})


# --- tools ------------------------------------------------------------------------------------------------------------


class FlatTool(_Strict):
    """A function that the model may call. `parameters` is the JSON schema of its arguments."""

    name: schema.FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    type: Literal["function"] = "function"


class FlatNamedTool(_Strict, tag_field="type", tag="function"):
    """The tool that the model must call, by its name."""

    name: schema.FunctionName


class FlatAllowedTool(_Strict):
    """A tool that the model may call, by its name."""

    name: schema.FunctionName
    type: Literal["function"] = "function"


class FlatAllowedTools(_Strict, tag_field="type", tag="allowed_tools"):
    """A selection of the tools. If `mode` is ``auto``, the model can call these tools or no tool. If `mode` is
    ``required``, the model must call one of these tools.
    """

    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatAllowedTool], Meta(min_length=1, max_length=schema.MOST_TOOLS)]


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | FlatNamedTool | FlatAllowedTools


# --- the request ------------------------------------------------------------------------------------------------------


class AnyTextFormat(_Strict, tag_field="type", tag="text"):
    """Any text."""


class AnyObjectFormat(_Strict, tag_field="type", tag="json_object"):
    """A JSON object."""


class SchemaFormat(_Strict, tag_field="type", tag="json_schema"):
    """A JSON text that conforms to a schema. The model does not get the name and the description."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


TextFormat: TypeAlias = AnyTextFormat | AnyObjectFormat | SchemaFormat

# Fields whose values are not changed. These values are JSON schemas. In a JSON schema, null is a value; it does not
# mean that a field is absent.
VERBATIM = frozenset({"parameters", "schema"})


class TextOptions(_Strict):
    """`verbosity` is accepted and has no effect."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(_Strict):
    """`effort` has the same meaning as `reasoning_effort` in chat completions. The other fields are accepted and have
    no effect.
    """

    effort: schema.ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(_Strict):
    """`include_obfuscation` is accepted for OpenAI's clients; this server does not obfuscate streams."""

    include_obfuscation: bool = False


LOGPROBS = "message.output_text.logprobs"

Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponsesRequest(_Strict, kw_only=True):
    """The request body. The fields after `stream_options` do not belong to OpenAI's Responses API; they have the same
    meaning as in chat completions.
    """

    input: str | Annotated[list[Item], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: schema.Count | None = None
    temperature: schema.Temperature | None = None
    top_p: schema.TopP | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Included] | None = None
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[FlatTool], Meta(max_length=schema.MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None

    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: schema.TopK | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: schema.RepetitionPenalty | None = None
    presence_penalty: schema.Penalty | None = None
    frequency_penalty: schema.Penalty | None = None
    stop: schema.StopString | Annotated[list[schema.StopString], Meta(max_length=16)] | None = None
    ignore_eos: bool | None = None
    use_audio_in_video: bool | None = None
    mm_processor_kwargs: schema.ClipOptions | None = None
    chat_template_kwargs: schema.TemplateOptions | None = None
    thinking_token_budget: schema.TokenBudget | None = None
    thinking_budget: schema.TokenBudget | None = None


# Fields that chat completions have under the same name.
SAME_IN_CHAT = (
    "temperature",
    "top_p",
    "top_logprobs",
    "parallel_tool_calls",
    "stream",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "ignore_eos",
    "use_audio_in_video",
    "mm_processor_kwargs",
    "chat_template_kwargs",
    "thinking_token_budget",
    "thinking_budget",
)

# Fields that are accepted and not read; see `gateway.api.unserved_fields`. `REFUSED` lists fields that would change the
# answer.
IGNORED = frozenset(
    {
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
_KEPT_NOWHERE = "this server does not store responses; send the whole conversation in 'input'"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "background": ((False,), "the server sends each answer only over the connection of the request"),
    "context_management": (([],), "this server does not shorten conversations"),
    "conversation": ((), _KEPT_NOWHERE),
    "moderation": ((), "this server does not moderate content"),
    "previous_response_id": ((), _KEPT_NOWHERE),
    "prompt": ((), "this server does not store prompts; send the text in 'instructions' and 'input'"),
    "truncation": (("disabled",), "this server does not shorten conversations"),
}
REFUSED_OPTIONS = {"file_id": "this server does not store files; send the file itself"}
