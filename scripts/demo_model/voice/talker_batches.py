"""Computes the talker's inputs and outputs for many utterances at once. The computation uses the reference's modules,
and is the same as in generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeTalkerForConditionalGeneration

Talker: TypeAlias = Qwen3OmniMoeTalkerForConditionalGeneration


@dataclass(frozen=True)
class UserTurns:
    """The user's turns, in the form that the talker reads. They are the prompt of all sequences in a batch."""

    ids: Tensor
    """Token ids [rows]."""
    media: Tensor
    """The thinker's hidden states at layer `accept_hidden_layer` [media rows, hidden], in the order of the media
    placeholders in `ids`.
    """
    positions: Tensor
    """Rotary positions [3, rows]."""

    @property
    def next_position(self) -> int:
        return int(self.positions.max()) + 1 if self.positions.numel() else 0


@dataclass(frozen=True)
class Reply:
    """An answer: its text tokens without the final end token, and the name of its speaker."""

    ids: Tensor
    speaker: str


class TalkerInputs:
    """Builds the talker's input rows from the thinker's frozen token embeddings."""

    def __init__(self, talker: Talker, config: Qwen3OmniMoeConfig, embeddings: Tensor, newline_id: int):
        """`embeddings` are the thinker's token embeddings [vocabulary, hidden]."""
        self.talker = talker
        self.config = config
        self.embeddings = embeddings
        thinker, codec = config.thinker_config, config.talker_config
        self._media_ids = torch.tensor([thinker.audio_token_id, thinker.image_token_id, thinker.video_token_id])
        self._opening = torch.tensor([config.im_start_token_id, config.assistant_token_id, newline_id])
        self._control = [codec.codec_nothink_id, codec.codec_think_bos_id, codec.codec_think_eos_id]
        self._begin = [codec.codec_pad_id, codec.codec_bos_id]

    def text(self, ids: Tensor) -> Tensor:
        """The rows of text tokens."""
        return self.talker.text_projection(self.embeddings[ids])

    def user_rows(self, prompt: UserTurns) -> Tensor:
        """The rows of the user's turns: [rows, talker hidden]."""
        rows = self.text(prompt.ids)
        media = torch.isin(prompt.ids, self._media_ids)
        if media.any():
            rows = rows.masked_scatter(media[:, None], self.talker.hidden_projection(prompt.media))
        return rows

    def assistant_rows(self, reply: Reply) -> Tensor:
        """The rows before the speech: [9, talker hidden]. The last row contains the first text token, and predicts
        frame 0.
        """
        config = self.config
        control = torch.tensor([config.tts_pad_token_id] * 4 + [config.tts_bos_token_id])
        text = self.text(torch.cat([self._opening, control, reply.ids[:1]]))
        speaker = config.talker_config.speaker_id[reply.speaker]
        codes = torch.tensor([*self._control, speaker, *self._begin])
        return torch.cat([text[:3], text[3:] + self.talker.model.codec_embedding(codes)])

    def trailing_rows(self, reply: Reply, frames: int) -> Tensor:
        """The text rows of the first `frames` frames, [frames, talker hidden]: the tokens after the first token, then
        the end token, then padding.
        """
        ids = torch.full((max(frames, len(reply.ids)),), self.config.tts_pad_token_id)
        ids[: len(reply.ids) - 1] = reply.ids[1:]
        ids[len(reply.ids) - 1] = self.config.tts_eos_token_id
        return self.text(ids[:frames])

    def frame_rows(self, codes: Tensor) -> Tensor:
        """The sum of a frame's code embeddings, for `codes` [frames, groups]."""
        rows = self.talker.model.codec_embedding(codes[:, 0])
        for embedding, residual in zip(self.talker.code_predictor.model.codec_embedding, codes.T[1:], strict=True):
            rows = rows + embedding(residual)
        return rows


def positions(prompt: UserTurns, rows: int) -> Tensor:
    """Rotary positions [3, rows]: the positions of the prompt, followed by consecutive positions."""
    later = torch.arange(rows - prompt.positions.shape[1]) + prompt.next_position
    return torch.cat([prompt.positions, later.expand(3, -1)], dim=1)


def states(talker: Talker, before: Tensor, rows: Sequence[Tensor], places: Tensor) -> tuple[Tensor, ...]:
    """The hidden states of several sequences of rows. The rows `before` come before each sequence.

    Returns the input rows and the states after each layer, each [batch, longest, hidden]; the final states are normed.
    The shorter sequences are padded at their end. The padding has no effect on the other rows, because attention is
    causal. `places` contains the rotary positions [3, rows] of `before` and of the longest sequence.
    """
    inputs = pad_sequence(list(rows), batch_first=True)
    cache = DynamicCache()
    if len(before):
        talker.model(inputs_embeds=before[None], position_ids=places[:, None, : len(before)], past_key_values=cache)
        cache.batch_repeat_interleave(len(inputs))
    place = places[:, None, len(before) :].expand(-1, len(inputs), -1)
    output = talker.model(
        inputs_embeds=inputs, position_ids=place, past_key_values=cache, use_cache=True, output_hidden_states=True
    )
    return output.hidden_states


def residual_logits(talker: Talker, hidden: Tensor, codes: Tensor) -> list[Tensor]:
    """The predictor's logits for each residual group, each [frames, codebook].

    `hidden` [frames, hidden] are the talker's states from which the first code of each frame was chosen. `codes`
    [frames, ≥ 1] are the known codes of each frame, beginning with the first code. Logits are returned for the residual
    groups whose codes are known, and for the next group.
    """
    predictor = talker.code_predictor
    known = [hidden, talker.model.codec_embedding(codes[:, 0])]
    for embedding, residual in zip(predictor.model.codec_embedding, codes.T[1:], strict=False):
        known.append(embedding(residual))
    known = known[: len(predictor.lm_head) + 1]
    outputs = predictor.model(inputs_embeds=torch.stack(known, dim=1), use_cache=False).last_hidden_state
    return [head(outputs[:, i + 1]) for i, head in zip(range(len(known) - 1), predictor.lm_head, strict=False)]
