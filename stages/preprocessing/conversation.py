"""Tokenises a conversation with the checkpoint's chat template. Text in the conversation cannot become a control
token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import Qwen3OmniMoeProcessor

from omni_pipeline.errors import bad_request
from stages.messages import Media, Modality, Text, Tool, Turn
from stages.preprocessing.call_format import CallFormat, call_message, find_call_format
from stages.preprocessing.chat_template import MarkedTemplate
from stages.preprocessing.generated_ids import GeneratedIds
from stages.preprocessing.layout import MediaTokens
from stages.preprocessing.text_encoder import TextEncoder
from stages.preprocessing.token_limit import TextLimit


class ChatTokenizer:
    """Turns a conversation into the reference's ids, with one placeholder for each media item.

    Only the special tokens that the template itself writes become special ids. If a text of the conversation spells out
    a special token, the spelling is tokenised as ordinary text. This is also true if the spelling begins in one part or
    message and ends in the next. All other text gets exactly the reference's ids. Some added tokens, such as
    ``<think>`` in an earlier answer, are not special in the tokenizer's own table. These added tokens keep their ids.
    The same rules apply to tools and their results. An earlier answer of the model keeps the ids that the model
    generated, if the server still has these ids and they spell the answer's text.

    Args:
        parser: The setting `tool_call_parser`.

    Attributes:
        call_format: The format of tool calls; None if the model cannot use tools.

    Raises:
        StartupError: The template or the parser cannot be used.
    """

    def __init__(self, processor: Qwen3OmniMoeProcessor, limit: TextLimit, parser: str = "auto") -> None:
        tokenizer = processor.tokenizer
        special = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = special
        self._template = MarkedTemplate(processor.chat_template, tokenizer.special_tokens_map, special)
        self.call_format: CallFormat | None = find_call_format(self._template, parser)
        self._encoder = TextEncoder(tokenizer.backend_tokenizer, limit)
        self._generated = GeneratedIds(tokenizer, special.values())
        self.tokens = MediaTokens(
            image=special[processor.image_token],
            video=special[processor.video_token],
            audio=special[processor.audio_token],
            audio_start=special[processor.audio_bos_token],
            audio_end=special[processor.audio_eos_token],
        )
        self._placeholders: dict[int, Modality] = {
            self.tokens.image: "image",
            self.tokens.video: "video",
            self.tokens.audio: "audio",
        }

    def skeleton(
        self,
        turns: Sequence[Turn],
        media: Sequence[Media],
        thinking: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> list[int]:
        """Ids of the prompt up to the start of the answer. The n-th placeholder is for the n-th `MediaRef` of the
        turns.

        Args:
            thinking: The variable `enable_thinking` of the template; None leaves the variable undefined.
            tools: The tools that the model sees.

        Raises:
            OmniError: 400 in three cases: the template refuses the conversation; the template has no place for tools,
                for calls or for a media item of a message; or a long text has too many tokens.
        """
        if self.call_format is None:
            _check_no_tools(turns, tools)
        ids: list[int] = []
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        if tools:
            options["tools"] = [json.loads(tool.definition) for tool in tools]
        pieces = list(self._template.pieces([_message(turn, media) for turn in turns], **options))
        answers = self._generated.places(pieces, turns)
        for index, (text, token) in enumerate(pieces):
            if index in answers:
                answer = answers[index]
                ids += self._encoder.ids(answer.opening) + answer.ids
                text = answer.rest
            if text:
                ids += self._encoder.ids(text, len(ids))
            if token:
                ids.append(self._special_ids[token])
        self._check_placeholders(ids, turns, media)
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of a single text. If the text spells out a special token, the spelling is tokenised as ordinary text."""
        return self._encoder.ids(text)

    def _check_placeholders(self, ids: Sequence[int], turns: Sequence[Turn], media: Sequence[Media]) -> None:
        wanted = [media[part.index] for turn in turns for part in turn.content if not isinstance(part, Text)]
        given = [self._placeholders[id_] for id_ in ids if id_ in self._placeholders]
        if given == [medium.kind for medium in wanted]:
            return
        misplaced = next(
            (medium for medium, kind in zip(wanted, [*given, None], strict=False) if medium.kind != kind), wanted[-1]
        )
        raise bad_request(
            f"The model's chat template has no place for {misplaced.kind} content in this message.",
            param=misplaced.param,
            code="invalid_value",
        )


def _check_no_tools(turns: Sequence[Turn], tools: Sequence[Tool]) -> None:
    calls = (f"messages[{index}].tool_calls" for index, turn in enumerate(turns) if turn.calls)
    param = "tools" if tools else next(calls, None)
    if param is not None:
        raise bad_request(
            f"'{param}' is not supported: the model's chat template has no place for tools, or the server's setting "
            "'tool_call_parser' turns them off.",
            param=param,
            code="unsupported_parameter",
        )


def _message(turn: Turn, media: Sequence[Media]) -> dict[str, Any]:
    """A turn in the structure that templates expect. If the turn has only text, the content is a string. Otherwise, the
    content is a list of parts.
    """
    parts = turn.content
    message: dict[str, Any] = {"role": turn.role}
    if all(isinstance(part, Text) for part in parts) and len(parts) < 2:
        message["content"] = "".join(part.text for part in parts if isinstance(part, Text))
    else:
        message["content"] = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": media[part.index].kind}
            for part in parts
        ]
    if turn.reasoning is not None:
        message["reasoning_content"] = turn.reasoning
    if turn.calls:
        message["tool_calls"] = [call_message(call) for call in turn.calls]
    return message
