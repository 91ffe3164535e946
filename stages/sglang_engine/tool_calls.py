"""Reads tool calls with SGLang's detectors.

A detector defines the markers around a call, and turns a whole block between markers into calls. Its streaming
functions are not used, for three reasons:
- they read the block again for each token;
- they send a call's name before the call is known to be well-formed;
- they lose the text of a malformed call.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from stages.messages import ToolCall
from stages.sglang_engine import environment

environment.prepare()

# A malformed call is a normal event here, because the client gets the text of the call instead.
logging.getLogger("sglang.srt.function_call").setLevel(logging.CRITICAL)

# SGLang's name of each format, with the module and class of its detector. All these formats have a JSON object, or a
# list of objects, between two markers. The import takes seconds, so this module is imported once, in the process from
# which workers are forked.
PARSERS = {
    "hermes": ("sglang.srt.function_call.hermes_detector", "HermesDetector"),
    "qwen": ("sglang.srt.function_call.qwen25_detector", "Qwen25Detector"),
    "qwen25": ("sglang.srt.function_call.qwen25_detector", "Qwen25Detector"),
}
_DETECTORS: dict[str, Any] = {
    name: getattr(importlib.import_module(module), kind) for name, (module, kind) in PARSERS.items()
}
_PROTOCOL = importlib.import_module("sglang.srt.entrypoints.openai.protocol")
# A string or a number in a JSON text.
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\Z)|(?P<number>-?[0-9][0-9.]*(?:[eE][+-]?[0-9]+)?)', re.DOTALL)
_LONGEST_INTEGER = 4300  # maximum number of digits of an integer that Python reads

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class CallReader:
    """Reads the calls of one answer.

    Args:
        parser: One of `PARSERS`.
        names: Names of the functions that may be called.

    Attributes:
        opening, closing: The markers around a call.
    """

    def __init__(self, parser: str, names: Collection[str]) -> None:
        self._detector = _DETECTORS[parser]()
        self._tools = [
            _PROTOCOL.Tool.model_construct(type="function", function=_PROTOCOL.Function.model_construct(name=name))
            for name in names
        ]
        self._names = frozenset(names)
        self.opening: str = self._detector.bot_token
        self.closing: str = self._detector.eot_token

    def read(self, block: str) -> Sequence[ToolCall]:
        """The calls in a block. The block is the text from an opening marker to a closing marker, or to the end of the
        answer. The result is empty if the block is malformed. In a well-formed block, all text is part of a call of a
        known function, and the arguments of each call are a JSON object.
        """
        try:
            found = self._detector.detect_and_parse(self._framed(block), self._tools).calls
        # Any exception is possible, because the detector evaluates text of the model: objects without the usual fields,
        # nesting that exceeds Python's stack, integers with too many digits.
        except Exception:
            return ()
        calls = [ToolCall(str(item.name), item.parameters) for item in found]
        return calls if all(map(self._well_formed, calls)) else ()

    def _framed(self, block: str) -> str:
        """Returns the block with only one closing marker, at its end.

        A detector stops at the first closing marker, even inside a string of the arguments. So if a string contains a
        closing marker, the first character of this marker is replaced by a JSON escape with the same meaning. Numbers
        that are too large for Python are replaced by the largest float, because a grammar allows any exponent.
        """
        end = len(block) - len(self.closing) if block.endswith(self.closing) else len(block)
        marker = self.closing.strip()
        body = block[len(self.opening) : end].replace(marker, f"\\u{ord(marker[0]):04x}{marker[1:]}")
        return self.opening + _STRING_OR_NUMBER.sub(_bounded, body) + block[end:]

    def _well_formed(self, call: ToolCall) -> bool:
        # A detector accepts NaN and unpaired surrogates, which are not JSON. It may also return calls of unknown
        # functions (see `environment`). This method finds these cases, and each case makes the whole block malformed.
        # So no call is left out silently.
        try:
            _OBJECT.decode(call.arguments.encode())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False
        return call.name in self._names


def _bounded(found: re.Match[str]) -> str:
    """Returns a string unchanged. A number that Python would read as infinite becomes the largest float of the same
    sign.
    """
    number = found["number"]
    if number is None or (number.lstrip("-").isdigit() and len(number) <= _LONGEST_INTEGER):
        return found[0]
    try:
        value = float(number)
    except ValueError:
        return number
    largest = sys.float_info.max
    return repr(max(-largest, min(value, largest))) if abs(value) > largest else number
