"""Reads the tools of a request, and the calls of earlier answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.api import schema
from gateway.api.schema import ChatCompletionRequest
from gateway.bodies.reader import JsonBodyReader
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError, bad_request
from stages.messages import Tool, ToolCall, ToolUse


def check_tools(request: ChatCompletionRequest) -> None:
    """Raises OmniError (400) if two tools have the same name, or if `tool_choice` contains a tool that the request does
    not define.
    """
    names: set[str] = set()
    for index, tool in enumerate(request.tools or ()):
        if tool.function.name in names:
            raise _invalid(f"tools[{index}].function.name", "another tool has this name")
        names.add(tool.function.name)
    choice = request.tool_choice
    if choice is not None and choice not in ("none", "auto") and not names:
        raise _invalid("tool_choice", "it is allowed only together with 'tools'")
    for param, chosen in _chosen(choice):
        if chosen not in names:
            raise _invalid(param, "there is no such tool in 'tools'")


def tool_use(request: ChatCompletionRequest) -> ToolUse | None:
    """The tools of a request; None if the request has no tools, or if the model must not call them."""
    choice = request.tool_choice
    if not request.tools or choice == "none":
        return None
    chosen = [name for _, name in _chosen(choice)]
    named = isinstance(choice, schema.NamedTool)
    return ToolUse(
        tools=[_tool(tool.function) for tool in request.tools],
        callable=list(dict.fromkeys(chosen)) or [tool.function.name for tool in request.tools],
        required=named or "required" in (choice, _mode(choice)),
        parallel=request.parallel_tool_calls is not False and not named,
    )


def earlier_calls(message: schema.AssistantMessage, param: str, limits: Limits) -> list[ToolCall]:
    """The calls of an earlier answer.

    Args:
        param: Path of the message, for errors.
        limits: Limits on the structure of the arguments. The structure of a body has the same limits.

    Raises:
        OmniError: 400 if the arguments of a call are not a string that contains a JSON object.
    """
    return [
        ToolCall(
            call.function.name,
            arguments_of_call(call.function.arguments, f"{param}.tool_calls[{index}].function.arguments", limits),
        )
        for index, call in enumerate(message.tool_calls or ())
    ]


def _chosen(choice: schema.ToolChoice | None) -> Sequence[tuple[str, str]]:
    """The tools in a choice, as pairs: the path of the field with the tool's name, and the name itself."""
    match choice:
        case schema.NamedTool():
            return [("tool_choice.function.name", choice.function.name)]
        case schema.AllowedToolsChoice():
            path = "tool_choice.allowed_tools.tools[{}].function.name"
            return [(path.format(index), tool.function.name) for index, tool in enumerate(choice.allowed_tools.tools)]
    return []


def _mode(choice: schema.ToolChoice | None) -> str | None:
    return choice.allowed_tools.mode if isinstance(choice, schema.AllowedToolsChoice) else None


def _tool(function: schema.FunctionDefinition) -> Tool:
    """A tool. The model gets its name, description and parameters, in this order. Missing fields are left out."""
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    if function.parameters is not None:
        shown["parameters"] = function.parameters
    return Tool(
        name=function.name,
        definition=_json({"type": "function", "function": shown}),
        parameters="" if function.parameters is None else _json(function.parameters),
        strict=bool(function.strict),
    )


def arguments_of_call(text: str, path: str, limits: Limits) -> str:
    """The arguments of an earlier call, as a string that contains a JSON object. An empty `text` counts as an empty
    object. Raises OmniError (400) with the `path` of the field.
    """
    if not text.strip():
        return "{}"
    reader = JsonBodyReader(limits)
    try:
        reader.feed(text.encode())
        value = msgspec.json.decode(text)
    except OmniError as error:
        raise _invalid(path, "it is nested too deeply, or has too many values or digits") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _invalid(path, f"it must be a string that contains a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise _invalid(path, "it must be a string that contains a JSON object")
    return _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _invalid(param: str, reason: str) -> OmniError:
    return bad_request(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")
