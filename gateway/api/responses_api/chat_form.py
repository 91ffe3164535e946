"""Turns a request of the Responses API into a request for chat completions. Also translates the paths in error
messages: a path in the request for chat completions becomes a path in the original request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from gateway.api import schema as chat
from gateway.api.conversion import MediaSource
from gateway.api.field_errors import invalid
from gateway.api.responses_api import schema
from gateway.api.schema import ChatCompletionRequest
from omni_pipeline.errors import ErrorInfo, bad_request

_MESSAGE = re.compile(r"messages\[(\d+)\]")
_CALL = re.compile(r"\.tool_calls\[(\d+)\](\.function)?")
# Fields of chat completions that have another name in the Responses API. A path that begins with such a field is
# translated.
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}


@dataclass(frozen=True)
class Places:
    """Maps the parts of a chat request to the paths of the same parts in the original Responses request.

    Attributes:
        contents: For each message, the path of its content.
        calls: For each message, the paths of its calls.
    """

    contents: tuple[str, ...]
    calls: tuple[tuple[str, ...], ...]

    def path(self, param: str) -> str:
        """Translates a path. `param` is a path in the chat request. The result is the path of the same data in the
        Responses request.
        """
        if found := _MESSAGE.match(param):
            message, rest = int(found[1]), param[found.end() :]
            if call := _CALL.match(rest):
                return self.calls[message][int(call[1])] + rest[call.end() :]
            place = self.contents[message]
            inner = rest.removeprefix(".content")
            return (place + inner if inner != rest else place).replace(".file.file_data", ".file_data")
        if param.startswith(("tools[", "tool_choice.")):
            return param.replace(".allowed_tools.", ".").replace(".function.", ".")
        param = param.replace("response_format.json_schema", "response_format", 1)
        name = re.split(r"[.\[]", param, maxsplit=1)[0]
        return _NAMES.get(name, name) + param[len(name) :]

    def error(self, info: ErrorInfo) -> ErrorInfo:
        """`info` with the path of the field in the Responses request."""
        if info.param is None:
            return info
        path = self.path(info.param)
        return msgspec.structs.replace(info, param=path, message=info.message.replace(info.param, path))

    def source(self, source: MediaSource) -> MediaSource:
        """A media item with the path of its field in the Responses request."""
        frames = tuple(self.source(frame) for frame in source.frames)
        return msgspec.structs.replace(source, param=self.path(source.param), frames=frames)


def chat_form(request: schema.ResponsesRequest) -> tuple[ChatCompletionRequest, Places]:
    """The chat request that asks for the same answer. The caller must check the chat request.

    Raises:
        OmniError: 400 for a file without data.
    """
    found = _Conversation()
    if request.instructions is not None:
        found.add(chat.SystemMessage(content=request.instructions), "instructions")
    if isinstance(request.input, str):
        found.add(chat.UserMessage(content=request.input), "input")
    else:
        for index, item in enumerate(request.input):
            found.add_item(item, f"input[{index}]")
        if not found.messages:
            raise invalid("input", "it has no message")
    fields = {name: getattr(request, name) for name in schema.SAME_IN_CHAT}
    logprobs = schema.LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    return (
        ChatCompletionRequest(
            messages=found.messages,
            max_completion_tokens=request.max_output_tokens,
            logprobs=logprobs,
            tools=[tool_form(tool) for tool in request.tools or ()] or None,
            tool_choice=tool_choice_form(request.tool_choice),
            response_format=_format(request.text),
            reasoning_effort=request.reasoning.effort if request.reasoning else None,
            **fields,
        ),
        Places(tuple(found.contents), tuple(map(tuple, found.calls))),
    )


class _Conversation:
    """The messages of a chat request. For each part of a message, this class also keeps the path of the same part in
    the Responses request.

    Attributes:
        contents: For each message, the path of its content.
        calls: For each message, the paths of its calls.
    """

    def __init__(self) -> None:
        self.messages: list[chat.ChatMessage] = []
        self.contents: list[str] = []
        self.calls: list[list[str]] = []

    def add(self, message: chat.ChatMessage, content: str) -> None:
        """Add a message. `content` is the path of its content in the Responses request."""
        self.messages.append(message)
        self.contents.append(content)
        self.calls.append([])

    def add_item(self, item: schema.Item, path: str) -> None:
        """Add `item`, whose path in the Responses request is `path`.

        In the Responses request, reasoning, a message and calls that follow each other are separate items. In chat
        completions, they are one answer.
        """
        match item:
            case schema.MessageItem():
                place = f"{path}.content"
                content = _content(item.content, place)
                if item.role == "assistant" and (answer := self._reasoned()):
                    answer.content, self.contents[-1] = content, place
                else:
                    self.add(_message(item.role, content), place)
            case schema.FunctionCallItem():
                answer = self._last_answer()
                if answer is None:
                    answer = chat.AssistantMessage()
                    self.add(answer, path)
                answer.tool_calls = [*(answer.tool_calls or ()), _call(item)]
                self.calls[-1].append(path)
            case schema.FunctionCallOutputItem():
                place = f"{path}.output"
                self.add(chat.ToolMessage(content=_content(item.output, place), tool_call_id=item.call_id), place)
            case schema.ReasoningItem():
                text = "".join(part.text for part in item.content or ())
                if answer := self._reasoned():
                    answer.reasoning_content = f"{answer.reasoning_content}{text}"
                elif text:
                    self.add(chat.AssistantMessage(content="", reasoning_content=text), path)

    def _last_answer(self) -> chat.AssistantMessage | None:
        """The last message, if it is an answer."""
        last = self.messages[-1] if self.messages else None
        return last if isinstance(last, chat.AssistantMessage) else None

    def _reasoned(self) -> chat.AssistantMessage | None:
        """The last message, if it is an answer that has only reasoning so far."""
        last = self._last_answer()
        if last is None or last.reasoning_content is None or last.content or last.tool_calls:
            return None
        return last


def _message(role: str, content: chat.Content) -> chat.ChatMessage:
    kinds = {
        "user": chat.UserMessage,
        "assistant": chat.AssistantMessage,
        "system": chat.SystemMessage,
        "developer": chat.DeveloperMessage,
    }
    return kinds[role](content=content)


def _content(content: str | list[schema.Part], path: str) -> chat.Content:
    if isinstance(content, str):
        return content
    return [_part(part, f"{path}[{index}]") for index, part in enumerate(content)]


def _part(part: schema.Part, path: str) -> chat.Part:
    match part:
        case schema.OutputTextPart():
            return chat.TextPart(part.text)
        case schema.InputFilePart():
            data = [value for value in (part.file_data, part.file_url) if value is not None]
            if len(data) != 1:
                raise bad_request(
                    f"Missing required field '{path}.file_data': send either 'file_data' or 'file_url' (a data URL)."
                    if not data
                    else f"Invalid '{path}.file_url': send only one of 'file_data' and 'file_url'.",
                    param=f"{path}.file_data" if not data else f"{path}.file_url",
                    code="invalid_value" if data else "missing_required_parameter",
                )
            return chat.FilePart(chat.FileContent(file_data=data[0], filename=part.filename))
    return part


def _call(item: schema.FunctionCallItem) -> chat.EarlierCall:
    return chat.EarlierCall(function=chat.EarlierFunction(item.name, item.arguments), id=item.call_id)


def tool_form(tool: schema.FlatTool) -> chat.FunctionTool:
    """Converts a tool of the Responses API into a tool of chat completions."""
    return chat.FunctionTool(chat.FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))


def tool_choice_form(choice: schema.ToolChoice | None) -> chat.ToolChoice | None:
    """Converts the field `tool_choice` of the Responses API into the same field of chat completions."""
    match choice:
        case schema.FlatNamedTool():
            return _named(choice)
        case schema.FlatAllowedTools():
            allowed = chat.AllowedTools(
                choice.mode, [chat.AllowedTool(chat.ChosenFunction(tool.name)) for tool in choice.tools]
            )
            return chat.AllowedToolsChoice(allowed)
    return choice


def _format(text: schema.TextOptions | None) -> chat.ResponseFormat | None:
    match text and text.format:
        case schema.AnyTextFormat():
            return chat.TextFormat()
        case schema.AnyObjectFormat():
            return chat.JsonObjectFormat()
        case schema.SchemaFormat() as form:
            named = chat.NamedSchema(form.name, form.description, form.schema, form.strict)
            return chat.JsonSchemaFormat(named)
    return None


def _named(tool: schema.FlatNamedTool) -> chat.NamedTool:
    return chat.NamedTool(chat.ChosenFunction(tool.name))
