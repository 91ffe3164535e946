"""For random conversations, the part of a prompt that the talker gets equals the part that the reference cuts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_positions import RandomPrompt
from transformers import Qwen3OmniMoeConfig

from stages.messages import ASSISTANT_ROWS, Sampling, SpeechOptions
from stages.preprocessing.layout import MediaTokens, lay_out
from stages.preprocessing.spoken import Roles, spoken_prompt

SPEECH = SpeechOptions("ethan", Sampling(), Sampling())


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> Qwen3OmniMoeConfig:
    return Qwen3OmniMoeConfig.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokens(processor: Any) -> MediaTokens:
    names = ("image_token", "video_token", "audio_token", "audio_bos_token", "audio_eos_token")
    return MediaTokens(*(processor.tokenizer.convert_tokens_to_ids(getattr(processor, name)) for name in names))


def in_turns(config: Qwen3OmniMoeConfig, skeleton: list[int], seed: int) -> list[int]:
    """A user turn with this content, and the start of the assistant's turn. For some seeds, a system turn, or a
    question with its answer, comes before the user turn.
    """
    start, end = config.im_start_token_id, config.im_end_token_id
    newline = 198
    user, assistant, system = config.user_token_id, config.assistant_token_id, config.system_token_id
    before: list[int] = []
    if seed % 3 == 1:
        before = [start, system, newline, 40, 41, end, newline]
    if seed % 3 == 2:
        before = [start, user, newline, 50, end, newline, start, assistant, newline, 60, 61, end, newline]
    return [*before, start, user, newline, *skeleton, end, newline, start, assistant, newline]


@pytest.mark.parametrize("seed", range(150))
def test_rows_and_positions_equal_the_references(
    seed: int, tokens: MediaTokens, processor: Any, thinker: Any, config: Qwen3OmniMoeConfig
) -> None:
    borders = [processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|vision_start|>", "<|vision_end|>")]
    prompt = RandomPrompt(seed, tokens, tuple(borders))
    layout = lay_out(in_turns(config, prompt.skeleton, seed), prompt.media, tokens, 13.0)

    spoken = spoken_prompt(layout, prompt.media, Roles.of(config), SPEECH)

    ids = torch.from_numpy(layout.ids)
    starts = (ids == config.im_start_token_id).nonzero()[:, 0].tolist()
    bounds = zip(starts, [*starts[1:], len(ids)], strict=True)
    user = [row for low, high in bounds if ids[low + 1] == config.user_token_id for row in range(low, high)]
    assert spoken.user_rows.numpy().tolist() == user

    heard = torch.cat([ids[user], torch.full((ASSISTANT_ROWS,), config.tts_pad_token_id)])[None]
    image, video = (torch.tensor(prompt.grids[kind]) if prompt.grids[kind] else None for kind in ("image", "video"))
    expected = thinker.get_rope_index(  # the talker has the same function, but without data on sound in clips
        heard, image, video, torch.ones_like(heard), False,
        torch.tensor(prompt.mel_frames), torch.tensor(prompt.seconds_per_step),
    )[0][:, 0].numpy()  # fmt: skip
    ours = spoken.positions
    plain = numpy.broadcast_to(numpy.arange(heard.shape[1], dtype=numpy.float32), (3, heard.shape[1]))
    assert numpy.array_equal(plain if ours is None else ours.numpy(), expected)
    assert spoken.position_delta == float(expected[0, -1] + numpy.float32(1) - numpy.float32(heard.shape[1]))
