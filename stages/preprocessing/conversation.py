"""Tokenises a conversation with the checkpoint's chat template. Text in the conversation cannot become a control
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Qwen3OmniMoeProcessor

from omni_pipeline.errors import bad_request
from stages.messages import Media, Modality, Text, Turn
from stages.preprocessing.chat_template import MarkedTemplate
from stages.preprocessing.layout import MediaTokens
from stages.preprocessing.text_encoder import TextEncoder
from stages.preprocessing.token_limit import TextLimit


class ChatTokenizer:
    """Turns a conversation into the reference's ids, with one placeholder for each media item.

    Only the special tokens that the template itself writes become special ids. If the conversation's text spells out a
    special token, even across the borders of parts and messages, the spelling is tokenised as ordinary text. Text
    without such spellings gets exactly the reference's ids. Markup that is not special in the tokenizer's own table,
    such as ``<think>`` in an earlier answer, keeps its ids.
    """

    def __init__(self, processor: Qwen3OmniMoeProcessor, limit: TextLimit) -> None:
        tokenizer = processor.tokenizer
        special = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = special
        self._template = MarkedTemplate(processor.chat_template, tokenizer.special_tokens_map, special)
        self._encoder = TextEncoder(tokenizer.backend_tokenizer, limit)
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

    def skeleton(self, turns: Sequence[Turn], media: Sequence[Media], thinking: bool | None = None) -> list[int]:
        """Ids of the prompt up to the start of the answer; the n-th placeholder is the n-th `MediaRef` of the turns.

        Args:
            thinking: The variable `enable_thinking` of the template; None leaves the variable undefined.

        Raises:
            OmniError: 400 if the template refuses the conversation, if it has no place for a media item in its message,
                or if a long text has too many tokens.
        """
        ids: list[int] = []
        options = {} if thinking is None else {"enable_thinking": thinking}
        for text, token in self._template.pieces([_message(turn, media) for turn in turns], **options):
            if text:
                ids += self._encoder.ids(text, len(ids))
            if token:
                ids.append(self._special_ids[token])
        self._check_placeholders(ids, turns, media)
        return ids

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


def _message(turn: Turn, media: Sequence[Media]) -> dict[str, Any]:
    """A turn as templates expect it: its content is a string if there is only text, and otherwise a list of parts."""
    parts = turn.content
    if all(isinstance(part, Text) for part in parts) and len(parts) < 2:
        return {"role": turn.role, "content": "".join(part.text for part in parts if isinstance(part, Text))}
    return {
        "role": turn.role,
        "content": [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": media[part.index].kind}
            for part in parts
        ],
    }
