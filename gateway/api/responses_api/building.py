"""Builds a response from the pipeline's messages, together with the events that a streamed response consists of."""

from __future__ import annotations

import time
import uuid
from typing import TypeVar

import msgspec

from gateway.api import responses
from gateway.api.responses import ChosenLogprob
from gateway.api.responses_api.objects import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    FunctionCall,
    IncompleteDetails,
    OutputDetails,
    OutputItemAdded,
    OutputItemDone,
    OutputReasoning,
    ReasoningSettings,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseErrorCode,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseUsage,
    Status,
    TextSettings,
)
from gateway.api.responses_api.open_items import OpenMessage, OpenReasoning
from gateway.api.responses_api.schema import AnyTextFormat, ReasoningOptions, ResponsesRequest, TextOptions
from omni_pipeline.errors import ErrorInfo
from stages.messages import Sampling, TextDelta, TextDone, ToolCall

Opened = TypeVar("Opened", OpenMessage, OpenReasoning)


def begun(response_id: str, model: str, request: ResponsesRequest, sampling: Sampling) -> Response:
    """The response to `request` before anything has been generated.

    Args:
        sampling: The parameters with which the text is sampled.
    """
    text = request.text or TextOptions()
    reasoning = request.reasoning or ReasoningOptions()
    return Response(
        id=response_id,
        created_at=int(time.time()),
        status="in_progress",
        model=model,
        output=[],
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning=ReasoningSettings(reasoning.effort, reasoning.summary),
        temperature=sampling.temperature,
        text=TextSettings(text.format or AnyTextFormat(), text.verbosity),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=sampling.top_p,
    )


class ResponseBuilder:
    """Builds one response.

    Args:
        response: The result of the function `begun`.

    Attributes:
        response: The response so far.
    """

    def __init__(self, response: Response) -> None:
        self.response = response
        self._events: list[Event] = []
        self._count = 0
        self._open: OpenMessage | OpenReasoning | None = None  # the item to which text is added
        # Log-probabilities of tokens that have not produced text yet. They are sent with the next text.
        self._early: list[ChosenLogprob] = []

    def begin(self) -> list[Event]:
        """The events before the first message."""
        self._begin()
        return self._take()

    def extend(self, delta: TextDelta) -> list[Event]:
        """Add reasoning, text and calls to the response. Returns the events for these additions."""
        if delta.reasoning:
            self._tell(self._open_reasoning().add(delta.reasoning))
        # OpenAI's reasoning items have no log-probabilities
        logprobs = responses.logprobs(token for token in delta.logprobs if not token.reasoning).content
        if not delta.text and not isinstance(self._open, OpenMessage):
            self._early += logprobs
        elif delta.text or logprobs:
            message = self._open_message()
            logprobs, self._early = [*self._early, *logprobs], []
            self._tell(message.add(delta.text, logprobs))
        for call in delta.calls:
            self._close("completed")
            self._add_call(call)
        return self._take()

    def end(self, done: TextDone) -> list[Event]:
        """Complete the response. Returns the last events."""
        cut = done.finish_reason == "length"
        if not self._has_answer and not (cut and self.response.output):
            # An answer without text has an empty message, unless the answer ends within its reasoning.
            self._open_message()
        self._close("incomplete" if cut else "completed")
        response = self.response
        counts = responses.usage([done], 0)
        response.usage = ResponseUsage(
            input_tokens=counts.prompt_tokens,
            input_tokens_details=counts.prompt_tokens_details,
            output_tokens=counts.completion_tokens,
            output_tokens_details=OutputDetails(counts.completion_tokens_details.reasoning_tokens),
            total_tokens=counts.total_tokens,
        )
        if cut:
            response.status = "incomplete"
            response.incomplete_details = IncompleteDetails("max_output_tokens")
            self._tell(ResponseIncomplete(response=response))
        else:
            response.status = "completed"
            self._tell(ResponseCompleted(response=response))
        return self._take()

    def fail(self, info: ErrorInfo) -> list[Event]:
        """End the response with an error. Returns the last event."""
        if not self._count:
            self._begin()  # clients expect these events at the beginning of every stream, even if it fails at once
        if self._open is not None:
            self._open.complete("incomplete")
        self.response.status = "failed"
        self.response.error = ResponseError(_error_code(info.status), info.message, info.code, info.param)
        self._tell(ResponseFailed(response=self.response))
        return self._take()

    def _begin(self) -> None:
        for kind in (ResponseCreated, ResponseInProgress):
            self._tell(kind(response=msgspec.structs.replace(self.response, output=[])))

    @property
    def _place(self) -> int:
        """Index of the newest output item."""
        return len(self.response.output) - 1

    @property
    def _has_answer(self) -> bool:
        """Whether there is any output besides reasoning."""
        return any(not isinstance(item, OutputReasoning) for item in self.response.output)

    def _open_message(self) -> OpenMessage:
        """The message to which text is added."""
        if isinstance(self._open, OpenMessage):
            return self._open
        return self._opened(OpenMessage(self._place + 1))

    def _open_reasoning(self) -> OpenReasoning:
        """The item to which reasoning is added."""
        if isinstance(self._open, OpenReasoning):
            return self._open
        return self._opened(OpenReasoning(self._place + 1))

    def _opened(self, opened: Opened) -> Opened:
        self._close("completed")
        self._open = opened
        self.response.output.append(opened.item)
        self._tell(*opened.opening())
        return opened

    def _close(self, status: Status) -> None:
        """End the item to which text is added, if there is one."""
        opened, self._open = self._open, None
        if opened is not None:
            self._tell(*opened.closing(status))

    def _add_call(self, call: ToolCall) -> None:
        """Add a complete call. The arguments of the call are sent in one piece."""
        item = FunctionCall(
            id=f"fc_{uuid.uuid4().hex}",
            call_id=f"call_{uuid.uuid4().hex[:24]}",
            name=call.name,
            arguments=call.arguments,
            status="completed",
        )
        self.response.output.append(item)
        begun = msgspec.structs.replace(item, arguments="", status="in_progress")
        self._tell(OutputItemAdded(output_index=self._place, item=begun))
        self._tell(ArgumentsDelta(item_id=item.id, output_index=self._place, delta=item.arguments))
        self._tell(ArgumentsDone(item_id=item.id, output_index=self._place, name=item.name, arguments=item.arguments))
        self._tell(OutputItemDone(output_index=self._place, item=item))

    def _tell(self, *events: Event) -> None:
        for event in events:
            event.sequence_number = self._count
            self._count += 1
            self._events.append(event)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _error_code(status: int) -> ResponseErrorCode:
    """OpenAI's code for an error with this HTTP status."""
    if status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if status < 500 else "server_error"
