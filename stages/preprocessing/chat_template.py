"""Renders the checkpoint's chat template. The result distinguishes the special tokens that the template writes from
texts that have the same spelling.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from omni_pipeline.errors import StartupError, bad_request

# Maximum number of characters of a template's error message that are shown to the client.
_REASON = 300

# A conversation that every chat template accepts. Its texts contain no special tokens.
_PLAIN = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


class MarkedTemplate:
    """A chat template in which each special token is replaced by a mark.

    A mark is a random word that no client can know. The template writes the marks; the texts of the conversation pass
    through the template unchanged. So after rendering, each mark represents a special token of the template, and
    everything else is text. This is also true where two texts meet: if the end of the first text and the beginning of
    the second text together spell a special token, the result is still text.

    Args:
        source: The template in Jinja's language.
        variables: Variables of the template, such as ``eos_token``.
        special: Spellings of the special tokens.

    Raises:
        StartupError: the template composes special tokens from pieces, so that marks cannot replace these tokens.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], special: Collection[str]) -> None:
        # Longer tokens come first. So if one token is a prefix of another token, the longer token is found.
        spellings = sorted(special, key=len, reverse=True)
        nonce = secrets.token_hex(16)
        self._spelling = re.compile("|".join(map(re.escape, spellings)))
        self._mark = re.compile(f"{nonce}x[0-9]+x")
        self._marks = {spelling: f"{nonce}x{number}x" for number, spelling in enumerate(spellings)}
        self._special = {mark: spelling for spelling, mark in self._marks.items()}
        self._source = self._marked(source)
        self._variables = self._marked(dict(variables))
        marks = [mark for _, mark in self.pieces(_PLAIN) if mark]
        if marks != self._spelling.findall(_render(source, variables, _PLAIN)):
            raise StartupError(
                "The model's chat template composes special tokens from pieces, so the server cannot distinguish them "
                "from the same text in a conversation. In the template, write each special token as one piece."
            )

    def pieces(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[tuple[str, str]]:
        """The rendered conversation, as pairs of a text and the special token after the text ("" at the end).

        Args:
            options: Variables of the template for this conversation, such as `tools`.

        Raises:
            OmniError: 400 if the template refuses the conversation.
        """
        try:
            rendered = _render(self._source, {**self._variables, **options}, messages)
        # any exception is possible, because the template is a program that runs on the client's data
        except Exception as error:
            reason = f": {str(error)[:_REASON]}" if isinstance(error, TemplateError) else "."
            raise bad_request(
                f"The model's chat template cannot render this conversation{reason}",
                param="messages",
                code="invalid_value",
            ) from error
        written = 0
        for found in self._mark.finditer(rendered):
            yield rendered[written : found.start()], self._special[found.group()]
            written = found.end()
        yield rendered[written:], ""

    def _marked(self, value: Any) -> Any:
        """A copy of `value`. In all strings that it contains, each special token is replaced by its mark."""
        if isinstance(value, str):
            return self._spelling.sub(lambda found: self._marks[found.group()], value)
        if isinstance(value, dict):
            return {key: self._marked(inner) for key, inner in value.items()}
        return [self._marked(inner) for inner in value] if isinstance(value, list | tuple) else value


def _render(source: str, variables: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=True, **variables
    )
    return rendered[0]
