"""The answers of the Responses API and the events of its streams."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from gateway.api.responses import ChosenLogprob, PromptDetails
from gateway.api.responses_api.schema import FlatTool, SummaryPart, TextFormat, ToolChoice

ResponseErrorCode: TypeAlias = Literal["server_error", "invalid_prompt", "rate_limit_exceeded"]
Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


# --- output items -----------------------------------------------------------------------------------------------------


class OutputText(Struct, tag_field="type", tag="output_text"):
    """A text of the answer. `logprobs` is empty if no log-probabilities were asked for."""

    text: str
    annotations: list[Any] = []
    logprobs: list[ChosenLogprob] = []


class OutputMessage(Struct, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class OutputReasoning(Struct, tag_field="type", tag="reasoning"):
    """The model's reasoning before its answer. It is not summarised."""

    id: str
    status: Status
    content: list[ReasoningText]
    summary: list[SummaryPart] = []


class FunctionCall(Struct, tag_field="type", tag="function_call"):
    """A call of a function; `arguments` is a string that contains a JSON object."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem: TypeAlias = OutputReasoning | OutputMessage | FunctionCall


# --- the response -----------------------------------------------------------------------------------------------------


class OutputDetails(Struct):
    """Parts of the answer, in tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: PromptDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Struct):
    reason: Literal["max_output_tokens"]


class ResponseError(Struct):
    """The reason why a streamed response has failed. `code` is one of OpenAI's codes. `detail` is the code that this
    server uses for the error. `param` is the wrong field.
    """

    code: ResponseErrorCode
    message: str
    detail: str | None
    param: str | None


class TextSettings(Struct):
    format: TextFormat
    verbosity: str | None = None


class ReasoningSettings(Struct):
    effort: str | None = None
    summary: str | None = None


class Response(Struct, kw_only=True):
    """An answer. The fields after `usage` repeat the request, and show the server's defaults for missing fields."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: ReasoningSettings
    store: bool = False
    temperature: float
    text: TextSettings
    tool_choice: ToolChoice
    tools: list[FlatTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    background: bool = False


# --- the events of a stream -------------------------------------------------------------------------------------------


class _Event(Struct, tag_field="type", kw_only=True):
    """An event. `sequence_number` counts the events of a stream from 0."""

    sequence_number: int = -1


class ResponseCreated(_Event, tag="response.created"):
    response: Response


class ResponseInProgress(_Event, tag="response.in_progress"):
    response: Response


class ResponseCompleted(_Event, tag="response.completed"):
    response: Response


class ResponseIncomplete(_Event, tag="response.incomplete"):
    response: Response


class ResponseFailed(_Event, tag="response.failed"):
    response: Response


class OutputItemAdded(_Event, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class OutputItemDone(_Event, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class ContentPartAdded(_Event, tag="response.content_part.added"):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class ContentPartDone(_Event, tag="response.content_part.done"):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class OutputTextDelta(_Event, tag="response.output_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[ChosenLogprob]


class OutputTextDone(_Event, tag="response.output_text.done"):
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[ChosenLogprob]


class ReasoningTextDelta(_Event, tag="response.reasoning_text.delta"):
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningTextDone(_Event, tag="response.reasoning_text.done"):
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(_Event, tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(_Event, tag="response.function_call_arguments.done"):
    item_id: str
    output_index: int
    name: str
    arguments: str


Event: TypeAlias = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ArgumentsDelta
    | ArgumentsDone
)
