"""Runs the reference in a chosen data type, forces it to generate given answers, and records its speech stage by
stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.reference import NO_TOKEN, Conversation, SpokenReference

CONTROL_CODES = 1024
"""Number of control codes, which are the talker's last ids. Only one of them may be picked: the end of speech."""


@dataclass(frozen=True)
class Speech:
    """Inputs and outputs of talker, predictor and vocoder for one spoken answer of f frames.

    Attributes:
        rows: float32 [p + f, hidden], the talker's input: its prompt of p rows, then one row for each frame.
        positions: float32 [3, p + f], the rotary positions of `rows`.
        prompt: The number p of prompt rows.
        states: float32 [f + 1, hidden], the talker's last states from the end of the prompt on.
        logits: float32 [f + 1, ids], the logits from which codebook 0 was picked.
        codes: int64 [f, codebooks].
        waveform: float32 [samples].
    """

    rows: torch.Tensor
    positions: torch.Tensor
    prompt: int
    states: torch.Tensor
    logits: torch.Tensor
    codes: torch.Tensor
    waveform: torch.Tensor


class RoundedReference(SpokenReference):
    """A checkpoint in Hugging Face's classes on the CPU, computing in `dtype`."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, dtype)
        self.dtype = dtype

    def inputs(self, conversation: Conversation) -> Any:
        inputs = super().inputs(conversation)
        return {
            name: value.to(self.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in inputs.items()
        }

    @torch.no_grad()
    def answer(
        self, conversation: Conversation, max_tokens: int, forced: Sequence[int] | None = None
    ) -> tuple[list[int], torch.Tensor]:
        """Ids of the greedy answer, or of the `forced` answer if one is given, and the logits that the model computes
        at these ids, float32 [ids, vocabulary].
        """
        inputs = self.inputs(conversation)
        start = inputs["input_ids"].shape[1]
        processors = [] if forced is None else [_Forced(forced, start)]
        result = self.model.thinker.generate(
            **inputs,
            use_audio_in_video=conversation.use_audio_in_video,
            do_sample=False,
            max_new_tokens=max_tokens if forced is None else len(forced),
            eos_token_id=self.model.config.im_end_token_id if forced is None else NO_TOKEN,
            logits_processor=LogitsProcessorList(processors),
            return_dict_in_generate=True,
            output_logits=True,
        )
        return result.sequences[0, start:].tolist(), torch.stack(result.logits)[:, 0].float()

    def record(self, conversation: Conversation, max_tokens: int, max_frames: int, speaker: str) -> Speech | None:
        """Records one spoken greedy answer. Returns None if the reference fails or the speech is empty."""
        talker = self.model.talker
        rows: list[torch.Tensor] = []
        positions: list[torch.Tensor] = []
        states: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []

        def hear_input(module: Any, arguments: Any, options: dict[str, Any]) -> None:
            rows.append(options["inputs_embeds"][0].float())
            positions.append(options["position_ids"][-3:, 0].float())

        def hear_output(module: Any, arguments: Any, result: torch.Tensor) -> None:
            states.append(arguments[0][0, -1].float())
            logits.append(result[0, -1].float())

        hooks = [
            talker.model.register_forward_pre_hook(hear_input, with_kwargs=True),
            talker.codec_head.register_forward_hook(hear_output),
        ]
        try:
            spoken = self.speak(conversation, max_tokens, max_frames, speaker)
        finally:
            for hook in hooks:
                hook.remove()
        if spoken is None or spoken.codes.shape[1] == 0:
            return None
        frames = spoken.codes.shape[1]
        return Speech(
            rows=torch.cat(rows[: frames + 1]),
            positions=torch.cat(positions[: frames + 1], dim=1),
            prompt=len(rows[0]),
            states=torch.stack(states[: frames + 1]),
            logits=torch.stack(logits[: frames + 1]),
            codes=spoken.codes.T.contiguous(),
            waveform=torch.from_numpy(spoken.waveform).float(),
        )

    @torch.no_grad()
    def talk(self, speech: Speech) -> tuple[torch.Tensor, torch.Tensor]:
        """States [f + 1, hidden] and logits [f + 1, ids] of the talker on recorded rows, float32."""
        output = self.model.talker.model(
            inputs_embeds=speech.rows[None].to(self.dtype), position_ids=speech.positions[:, None], use_cache=False
        )
        states = output.last_hidden_state[:, speech.prompt - 1 :]
        return states[0].float(), self.model.talker.codec_head(states)[0].float()

    @torch.no_grad()
    def predict(self, state: torch.Tensor, code: int) -> list[int]:
        """All codes of one frame, picked greedily. The inputs are a talker state and the first code of the frame."""
        talker = self.model.talker
        first = talker.get_input_embeddings()(torch.tensor([[code]]))
        result = talker.code_predictor.generate(
            inputs_embeds=torch.cat((state[None, None].to(self.dtype), first), dim=1),
            max_new_tokens=talker.config.num_code_groups - 1,
            do_sample=False,
        )
        return [code, *result[0].tolist()]

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The sound that codes [f, codebooks] give, float32 [samples]."""
        return self.model.code2wav(codes.T[None])[0, 0].float()


class _Forced(LogitsProcessor):
    """A logits processor that allows only the forced id at each step."""

    def __init__(self, ids: Sequence[int], start: int) -> None:
        self._ids = ids
        self._start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._ids[input_ids.shape[1] - self._start]] = 0
        return forced
