"""Tokenises a conversation with the checkpoint's chat template; text in it cannot become a control token."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import Qwen3OmniMoeProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from omni_pipeline.errors import bad_request
from stages.messages import Media, Modality, Text, Turn
from stages.preprocessing.layout import MediaTokens


class ChatTokenizer:
    """Turns a conversation into the reference's ids, with one placeholder for each media item.

    A special token that is spelled out in the conversation's text stays text: it is tokenised as its letters, and never
    becomes a turn, a placeholder or an end. To ensure that, random words replace such spellings while the template is
    rendered, and only the special tokens that the template itself wrote become special ids. Text without such spellings
    gets exactly the reference's ids. Markup that is not special in the tokenizer's own table, such as ``<think>`` in an
    earlier answer, keeps its ids.
    """

    def __init__(self, processor: Qwen3OmniMoeProcessor) -> None:
        tokenizer = processor.tokenizer
        special = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = special
        # Longest first, so that a token that begins with another token is found whole.
        spellings = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spellings)))
        nonce = secrets.token_hex(16)
        self._stand_ins = {spelling: f"{nonce}x{number}x" for number, spelling in enumerate(spellings)}
        self._spelled = {stand_in: spelling for spelling, stand_in in self._stand_ins.items()}
        self._stand_in = re.compile(f"{nonce}x[0-9]+x")
        self._encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder.encode_special_tokens = True  # as text
        self._template: str = processor.chat_template
        self._variables = dict(tokenizer.special_tokens_map)
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

    def skeleton(self, turns: Sequence[Turn], media: Sequence[Media]) -> list[int]:
        """Ids of the prompt up to the start of the answer; the n-th placeholder is the n-th `MediaRef` of the turns.

        Raises:
            OmniError: 400 if the template has no place for a media item in its message.
        """
        messages = [{"role": turn.role, "content": self._content(turn, media)} for turn in turns]
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=self._template, add_generation_prompt=True, **self._variables
        )
        ids: list[int] = []
        written = 0
        for found in self._special.finditer(rendered[0]):
            ids += self._text_ids(rendered[0][written : found.start()])
            ids.append(self._special_ids[found.group()])
            written = found.end()
        ids += self._text_ids(rendered[0][written:])
        self._check_placeholders(ids, turns, media)
        return ids

    def _content(self, turn: Turn, media: Sequence[Media]) -> str | list[dict[str, Any]]:
        """A turn's content as templates expect it: a string if there is only text, else a list of parts."""
        if all(isinstance(part, Text) for part in turn.content) and len(turn.content) < 2:
            return "".join(self._disarmed(part.text) for part in turn.content if isinstance(part, Text))
        return [
            {"type": "text", "text": self._disarmed(part.text)}
            if isinstance(part, Text)
            else {"type": media[part.index].kind}
            for part in turn.content
        ]

    def _disarmed(self, text: str) -> str:
        return self._special.sub(lambda found: self._stand_ins[found.group()], text)

    def _text_ids(self, text: str) -> list[int]:
        if not text:
            return []
        spelled_out = self._stand_in.sub(lambda found: self._spelled[found.group()], text)
        return self._encoder.encode(spelled_out, add_special_tokens=False).ids

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
