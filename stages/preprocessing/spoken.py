"""Selects the part of a prompt that the talker receives: the rows of the user's turns with their positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from msgspec import Struct
from transformers import Qwen3OmniMoeConfig

from omni_pipeline.wire.tensor import Tensor
from stages.messages import ASSISTANT_ROWS, SpeechOptions, SpokenPrompt
from stages.preprocessing.layout import MediumRows, PromptLayout
from stages.preprocessing.positions import mrope_positions


class Roles(Struct, frozen=True):
    """Ids of two tokens, and the talker's own time scale. Token `turn_start` begins every turn. Token `user` marks the
    user's turns.
    """

    turn_start: int
    user: int
    ids_per_second: float

    @classmethod
    def of(cls, config: Qwen3OmniMoeConfig) -> Roles:
        return cls(config.im_start_token_id, config.user_token_id, config.talker_config.position_id_per_seconds)


def spoken_prompt(
    layout: PromptLayout, media: Sequence[MediumRows], roles: Roles, speech: SpeechOptions
) -> SpokenPrompt:
    """The part of a prompt that the talker receives if the answer is spoken: the rows of the user's turns.

    The talker's positions are the positions that the thinker would compute for a prompt with only these rows. Clips
    whose sound is used are an exception. In such a clip, the rows of the sound are placed between the rows of the
    frames. The reference's talker ignores this, and treats the clip as text. But if a picture comes later in the
    prompt, the reference searches for visual rows. It finds the visual rows of the clip first, so the clip is not
    treated as text.
    """
    ids = layout.ids
    starts = numpy.flatnonzero(ids == roles.turn_start)
    turn = numpy.searchsorted(starts, numpy.arange(len(ids)), side="right") - 1
    role = ids[numpy.minimum(starts + 1, len(ids) - 1)]
    user_rows = numpy.flatnonzero((role == roles.user)[turn] & (turn >= 0))
    places = _placed(layout, media, user_rows)
    last_image = max((index for index, (medium, *_) in enumerate(places) if medium.kind == "image"), default=-1)
    gaps: list[int] = []
    kept: list[MediumRows] = []
    closed = 0
    for index, (medium, opening, closing) in enumerate(places):
        if medium.interleaved and index > last_image:
            continue  # the clip's rows count as text in the gap around the clip
        gaps.append(opening - closed)
        kept.append(medium)
        closed = closing + 1
    gaps.append(len(user_rows) + ASSISTANT_ROWS - closed)
    positions, delta = mrope_positions(gaps, kept, roles.ids_per_second)
    return SpokenPrompt(
        user_rows=Tensor.of(user_rows),
        positions=None if positions is None else Tensor.of(positions),
        position_delta=delta,
        speech=speech,
    )


def _placed(
    layout: PromptLayout, media: Sequence[MediumRows], user_rows: numpy.ndarray
) -> list[tuple[MediumRows, int, int]]:
    """The media items of the user's turns. Each item comes with two indices into `user_rows`: those of its first marker
    and of its last marker.
    """
    placed: list[tuple[MediumRows, int, int]] = []
    for medium, seen, heard in zip(media, layout.visual_rows, layout.audio_rows, strict=True):
        rows = numpy.concatenate([seen, heard])
        markers = 2 if medium.interleaved else 1
        first, last = numpy.searchsorted(user_rows, [rows.min() - markers, rows.max() + markers]).tolist()
        if last < len(user_rows) and user_rows[first] == rows.min() - markers:
            placed.append((medium, first, last))
    return placed
