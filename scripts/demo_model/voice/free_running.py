"""Generates speech codes for many answers at once. As in the server, each frame depends on the frames that the model
has generated before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from demo_model.voice.talker_batches import Reply, TalkerInputs, UserTurns, positions, residual_logits

PENALTY = 1.05
"""The reference's default repetition penalty for codes that were chosen before; it applies to greedy choices too."""
_TEMPERATURE, _TOP_K = 0.9, 50
_RESIDUAL_TOP_P = 0.8
_MOST_FRAMES = 160


@torch.no_grad()
def generate(
    inputs: TalkerInputs, prompt: UserTurns, replies: Sequence[Reply], sampled: bool, seed: int
) -> list[Tensor]:
    """Generate the codes [groups, frames] of each reply with the reference's default settings. If `sampled` is set,
    codes are sampled. Otherwise, the choice is greedy.
    """
    talker, config = inputs.talker, inputs.config.talker_config
    generator = torch.Generator().manual_seed(seed)
    user = inputs.user_rows(prompt)
    rows = torch.stack([torch.cat([user, inputs.assistant_rows(reply)]) for reply in replies])
    trailing = torch.stack([inputs.trailing_rows(reply, _MOST_FRAMES) for reply in replies])
    places = positions(prompt, rows.shape[1] + _MOST_FRAMES)

    cache = DynamicCache()
    allowed = speakable(talker.vocab_size, config.codec_eos_token_id)
    seen = torch.zeros(len(replies), talker.vocab_size, dtype=torch.bool)
    ended = torch.zeros(len(replies), dtype=torch.bool)
    frames: list[Tensor] = []
    lengths = torch.zeros(len(replies), dtype=torch.long)
    start = 0
    for frame in range(_MOST_FRAMES):
        place = places[:, None, start : start + rows.shape[1]].expand(-1, len(replies), -1)
        output = talker.model(inputs_embeds=rows, position_ids=place, past_key_values=cache, use_cache=True)
        start += rows.shape[1]
        hidden = output.last_hidden_state[:, -1]
        logits = penalised(talker.codec_head(hidden), seen).masked_fill(~allowed, -torch.inf)
        first = _draw(logits / _TEMPERATURE, 1.0, generator) if sampled else logits.argmax(dim=-1)
        ended |= first == config.codec_eos_token_id
        if ended.all():
            break
        lengths += ~ended
        first = first.where(~ended, 0)
        seen.scatter_(1, first[:, None], True)
        codes = first[:, None]
        for _ in range(config.num_code_groups - 1):
            logits = residual_logits(talker, hidden, codes)[-1]
            residual = _draw(logits, _RESIDUAL_TOP_P, generator) if sampled else logits.argmax(dim=-1)
            codes = torch.cat([codes, residual[:, None]], dim=1)
        frames.append(codes)
        rows = (inputs.frame_rows(codes) + trailing[:, frame])[:, None]
    if not frames:
        return [torch.zeros(config.num_code_groups, 0, dtype=torch.long) for _ in replies]
    whole = torch.stack(frames, dim=-1)
    return [codes[:, :length] for codes, length in zip(whole, lengths.tolist(), strict=True)]


def speakable(vocabulary: int, end: int) -> Tensor:
    """A mask of the codes that may be chosen, bool [vocabulary]: the end of speech, and all codes except the last
    1024.
    """
    allowed = torch.arange(vocabulary) < vocabulary - 1024
    allowed[end] = True
    return allowed


def penalised(logits: Tensor, seen: Tensor) -> Tensor:
    """`logits` with the repetition penalty applied to the codes that were `seen`."""
    return torch.where(seen, torch.where(logits < 0, logits * PENALTY, logits / PENALTY), logits)


def _draw(logits: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """Sample an index for each row of logits [rows, choices], with top-k of 50 and `top_p`."""
    best, indices = logits.topk(min(_TOP_K, logits.shape[-1]), dim=-1)
    probabilities = best.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0)
    return indices.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]
