"""Turns conversations into prompts for the thinker's training, with the same layout as in the server. The caller
passes the rows of the media in a conversation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo_model.checkpoint.shapes import config_json, token_embeddings
from demo_model.checkpoint.tokenizer import tokenizer, vocabulary
from demo_model.thinker.attention_targets import Counts, Looks, counted, gathered, looks
from demo_model.world.grammar import Facts
from stages.preprocessing.layout import MediaTokens, MediumRows, lay_out
from stages.preprocessing.positions import mrope_positions

SECONDS_PER_STEP = 1.0
"""The duration of one step of a clip: two frames at two frames per second, as in the server."""


@dataclass(frozen=True)
class Seen:
    """The vision tower's output for a picture or a clip.

    Attributes:
        grid: Steps, rows and columns of visual tokens. A picture has one step.
        rows: float [1 + DeepStack maps, tokens, hidden]: the rows in the prompt, then the maps that are added after the
            first layers.
        is_clip: Whether the media item was sent as a video.
    """

    grid: tuple[int, int, int]
    rows: Tensor
    is_clip: bool


@dataclass(frozen=True)
class PromptPart:
    """A part of a user's message: text, or a picture or clip, or the rows of a sound (float [rows, hidden])."""

    text: str | None = None
    seen: Seen | None = None
    heard: Tensor | None = None


@dataclass(frozen=True)
class AnsweredTurn:
    """A user's message and the answer to it."""

    parts: tuple[PromptPart, ...]
    answer: str


@dataclass(frozen=True)
class ThinkerPrompt:
    """A conversation as the thinker reads it.

    Attributes:
        rows: float32 [length, hidden].
        deep: float32 [maps, length, hidden].
        positions: float32 [3, length].
        ids: int64 [length].
        answered: bool [length]: whether the token belongs to an answer, including its end token.
        facts: The contents of the conversation's picture or clip, if they are known.
    """

    rows: Tensor
    deep: Tensor
    positions: Tensor
    ids: Tensor
    answered: Tensor
    facts: Facts = None


def prompt(turns: Sequence[AnsweredTurn], names: Path, system: str | None = None, facts: Facts = None) -> ThinkerPrompt:
    """Lay out a conversation. `names` is the directory of the tokenizer's files."""
    ids: list[int] = []
    answered: list[bool] = []
    media: list[MediumRows] = []
    seen: list[Seen] = []
    heard: list[Tensor] = []

    def write(text: str, is_answer: bool = False) -> None:
        new = _encoded(text, names)
        ids.extend(new)
        answered.extend([is_answer] * len(new))

    if system is not None:
        write(f"<|im_start|>system\n{system}<|im_end|>\n")
    for turn in turns:
        write("<|im_start|>user\n")
        for part in turn.parts:
            if part.text is not None:
                write(part.text)
            elif part.seen is not None:
                kind = "video" if part.seen.is_clip else "image"
                write(f"<|vision_start|><|{kind}_pad|><|vision_end|>")
                media.append(MediumRows("video" if part.seen.is_clip else "image", part.seen.grid, 0, SECONDS_PER_STEP))
                seen.append(part.seen)
            elif part.heard is not None:
                write("<|audio_start|><|audio_pad|><|audio_end|>")
                media.append(MediumRows("audio", audio=len(part.heard)))
                heard.append(part.heard)
        write("<|im_end|>\n<|im_start|>assistant\n")
        write(f"{turn.answer}<|im_end|>", is_answer=True)
        write("\n")

    layout = lay_out(ids, media, _media_tokens(), _ids_per_second())
    length = len(layout.ids)
    positions, _ = mrope_positions(layout.gaps, media, _ids_per_second())
    if positions is None:
        positions = np.broadcast_to(np.arange(length, dtype=np.float32), (3, length))
    flat = torch.from_numpy(layout.ids)
    rows = _table()[flat]
    maps = seen[0].rows.shape[0] - 1 if seen else 0
    deep = torch.zeros(maps, length, rows.shape[1])
    visual = [where for where in layout.visual_rows if len(where)]
    for item, where in zip(seen, visual, strict=True):
        rows[where] = item.rows[0].float()
        deep[:, where] = item.rows[1:].float()
    for sound, where in zip(heard, (where for where in layout.audio_rows if len(where)), strict=True):
        rows[where] = sound.float()
    sizes = np.ones(len(ids), np.int64)
    placeholders = np.flatnonzero(np.isin(ids, (_media_tokens().image, _media_tokens().video, _media_tokens().audio)))
    sizes[placeholders] = [medium.visual + medium.audio for medium in media]
    spread = torch.from_numpy(np.repeat(np.array(answered), sizes))
    return ThinkerPrompt(rows, deep, torch.from_numpy(np.array(positions)), flat, spread, facts)


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded to one length; see `ThinkerPrompt` for the fields."""

    rows: Tensor
    deep: list[Tensor]
    positions: Tensor
    targets: Tensor
    """int64 [batch, length]: the token after each row if it must be predicted, else -100."""
    looks: list[Looks]
    counts: list[Counts]


def together(prompts: Sequence[ThinkerPrompt]) -> PromptBatch:
    length = max(len(prompt.ids) for prompt in prompts)
    width = prompts[0].rows.shape[1]
    maps = max(prompt.deep.shape[0] for prompt in prompts)
    rows = torch.zeros(len(prompts), length, width)
    deep = torch.zeros(maps, len(prompts), length, width)
    positions = torch.zeros(3, len(prompts), length)
    targets = torch.full((len(prompts), length), -100)
    for number, one in enumerate(prompts):
        size = len(one.ids)
        rows[number, :size] = one.rows
        deep[: one.deep.shape[0], number, :size] = one.deep
        positions[:, number, :size] = one.positions
        targets[number, : size - 1] = torch.where(one.answered[1:], one.ids[1:], -100)
    wanted = [looks(one.ids, one.rows, one.answered, one.facts) for one in prompts]
    found, counts = [one for one, _ in wanted], [one for _, one in wanted]
    return PromptBatch(rows, list(deep), positions, targets, gathered(found, length), counted(counts))


@functools.cache
def _table() -> Tensor:
    return torch.from_numpy(token_embeddings())


@functools.lru_cache(maxsize=100_000)
def _encoded(text: str, names: Path) -> tuple[int, ...]:
    return tuple(tokenizer(names).encode(text))


@functools.cache
def _media_tokens() -> MediaTokens:
    ids = vocabulary().id
    return MediaTokens(
        image=ids("<|image_pad|>"),
        video=ids("<|video_pad|>"),
        audio=ids("<|audio_pad|>"),
        audio_start=ids("<|audio_start|>"),
        audio_end=ids("<|audio_end|>"),
    )


@functools.cache
def _ids_per_second() -> float:
    return float(config_json()["thinker_config"]["position_id_per_seconds"])
