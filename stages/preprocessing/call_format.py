"""Finds out from a model's chat template in which format the model writes tool calls."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from omni_pipeline.errors import OmniError, StartupError
from stages.messages import ToolCall
from stages.preprocessing.chat_template import MarkedTemplate
from stages.sglang_engine.tool_calls import CallReader

AUTOMATIC = ("hermes",)
"""The parsers that the setting ``auto`` tries. `hermes` reads everything that `qwen` and `qwen25` read. It also reads
calls without line breaks next to the markers.
"""

# Words for a trial call and its answer. No template contains them.
_TOOL, _CONTENT, _VALUES = "look_up_z7q", "Content z7q.", ("first_z7q", "second_z7q")


def call_message(call: ToolCall) -> dict[str, Any]:
    """A call in the structure that templates expect. The arguments are a parsed object. So the template formats the
    arguments as in the model's training, even if the client's JSON is formatted in another way.
    """
    return {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}


class CallFormat(Struct, frozen=True):
    """The format of tool calls.

    Attributes:
        parser: SGLang's name of the format.
        opening: The marker with which a call begins.
        before_name, before_arguments, end: The texts around the name and the arguments of a call.
        between: The text between two calls.
    """

    parser: str
    opening: str
    before_name: str
    before_arguments: str
    end: str
    between: str

    def begin(self, name: str) -> str:
        """The text with which a call of this function begins: everything before the arguments."""
        return f"{self.before_name}{name}{self.before_arguments}"


def find_call_format(template: MarkedTemplate, setting: str) -> CallFormat | None:
    """The format in which the template writes calls. None if the template does not support tools, if the setting is
    ``none``, or if the setting is ``auto`` and no parser in `AUTOMATIC` can read this format.

    Args:
        setting: The name of a parser, ``auto`` or ``none``.

    Raises:
        StartupError: The setting names a parser that cannot read the template's calls.
    """
    written = _written(template) if setting != "none" else None
    if written is None and setting in ("auto", "none"):
        return None
    for parser in AUTOMATIC if setting == "auto" else (setting,):
        reader = CallReader(parser, [_TOOL])
        if written is not None and _reads(reader, *written):
            return CallFormat(parser, reader.opening.strip(), *written)
    if setting == "auto":
        return None
    raise StartupError(
        f"The tool-call parser '{setting}' cannot read the calls that the model's chat template writes. Set "
        "'tool_call_parser' in the options of 'preprocessing' to 'auto' or 'none'."
    )


def _written(template: MarkedTemplate) -> tuple[str, str, str, str] | None:
    """The four texts that the template writes around calls: before the name, before the arguments, after the call, and
    between two calls.
    """
    calls = [ToolCall(_TOOL, json.dumps({"word": value})) for value in _VALUES]
    try:
        shows_tools = _TOOL in _rendered(template, [], tools=[{"type": "function", "function": {"name": _TOOL}}])
        plain, one, two = (_rendered(template, calls[:count]) for count in range(3))
    except OmniError:
        return None
    # The same answer is rendered with and without calls. The two results differ only in the calls, which follow the
    # content.
    head, _, tail = plain.partition(_CONTENT)
    head += _CONTENT
    if not shows_tools or not all(text.startswith(head) and text.endswith(tail) for text in (one, two)):
        return None
    one, two = (text[len(head) : len(text) - len(tail)].strip() for text in (one, two))
    first, second = (call.arguments for call in calls)
    before_name, _, rest = one.partition(_TOOL)
    before_arguments, found, end = rest.partition(first)
    if not found or not before_name or not end:
        return None
    between = two.removeprefix(one).removesuffix(f"{before_name}{_TOOL}{before_arguments}{second}{end}")
    return before_name, before_arguments, end, between


def _rendered(template: MarkedTemplate, calls: list[ToolCall], **options: Any) -> str:
    """The rendered text of a conversation with one answer. The answer consists of `_CONTENT` and these calls."""
    answer: dict[str, Any] = {"role": "assistant", "content": _CONTENT}
    if calls:
        answer["tool_calls"] = [call_message(call) for call in calls]
    messages = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "c"}]
    return "".join(text + token for text, token in template.pieces(messages, **options))


def _reads(reader: CallReader, before_name: str, before_arguments: str, end: str, between: str) -> bool:
    """Whether the parser can read a call that consists of these texts, the name and the arguments."""
    call = ToolCall(_TOOL, "{}")
    block = f"{before_name}{call.name}{before_arguments}{call.arguments}{end}"
    framed = block.startswith(reader.opening) and block.endswith(reader.closing) and not between.strip()
    return framed and list(reader.read(block)) == [call]
