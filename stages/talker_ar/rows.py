"""Makes the talker's input rows: the rows of a prompt, and the row of text for each frame."""

from __future__ import annotations

from typing import Any

import torch

from stages.checkpoint.weights import read_tensors
from stages.messages import TalkerPrompt
from stages.sglang_engine.engine import Engine


class TalkerRows:
    """Makes the talker's input rows (of width h) in the same way as the reference.

    Args:
        engine: The talker's engine, which has the projections and the codec embedding.
        config: The checkpoint's config.json.
        model_path: The checkpoint. The thinker's embedding table is not loaded. Only the rows that a text needs are
            read from the checkpoint's files.

    Attributes:
        text_end: [h], the text row after the last word.
        silence: [h], the text row of every frame after the frame with `text_end`.
    """

    def __init__(self, engine: Engine, config: dict[str, Any], model_path: str) -> None:
        self._engine = engine
        self._model = engine.model
        self._table = read_tensors(model_path, "thinker.model.embed_tokens.")["weight"]
        weight = self._model.text_projection.linear_fc1.weight
        self._device, self._dtype = weight.device, weight.dtype
        talker = config["talker_config"]
        self._speakers = {name.lower(): code for name, code in talker["speaker_id"].items()}
        names = ("codec_nothink_id", "codec_think_bos_id", "codec_think_eos_id", "codec_pad_id", "codec_bos_id")
        self._codec = dict(zip(names, self._codec_rows([talker[name] for name in names]), strict=True))
        special = torch.tensor([config[f"tts_{name}_token_id"] for name in ("bos", "eos", "pad")])
        self._text_start, self.text_end, self.silence = self.text(special)

    @torch.inference_mode()
    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of text tokens: int64 [n] to [n, h]."""
        return self._model.text_projection(self._table[ids].to(self._device, self._dtype))

    @torch.inference_mode()
    def media(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of media: hidden states of the thinker [n, thinker hidden] to [n, h]."""
        return self._model.hidden_projection(hidden.to(self._device, self._dtype))

    @torch.inference_mode()
    def assistant(self, prompt: TalkerPrompt, first: torch.Tensor) -> torch.Tensor:
        """The `ASSISTANT_ROWS` rows that open the assistant's turn, [9, h].

        Args:
            first: Row of the first generated text token, [h].
        """
        [speaker] = self._codec_rows([self.speaker(prompt)])
        opening = self.text(torch.tensor(prompt.assistant_ids))
        codec = self._codec
        spoken = torch.stack(
            [
                self.silence + codec["codec_nothink_id"],
                self.silence + codec["codec_think_bos_id"],
                self.silence + codec["codec_think_eos_id"],
                self.silence + speaker,
                self._text_start + codec["codec_pad_id"],
                first + codec["codec_bos_id"],
            ]
        )
        return torch.cat([opening, spoken])

    def speaker(self, prompt: TalkerPrompt) -> int:
        """The codec code of the prompt's speaker."""
        return self._speakers[prompt.speech.speaker]

    def _codec_rows(self, codes: list[int]) -> torch.Tensor:
        return self._engine.embed(torch.tensor(codes))


class PromptInput:
    """The rows of one prompt: the rows of the user's turns, then the `ASSISTANT_ROWS` rows that open the assistant's
    turn. A row of the user's turns is made only when the engine needs it, because the prefix cache may already contain
    most of these rows.

    Args:
        first: Row of the first generated text token, [h].
    """

    def __init__(self, rows: TalkerRows, prompt: TalkerPrompt, first: torch.Tensor) -> None:
        self._rows = rows
        self._ids = prompt.ids.torch()
        self._media_rows = torch.empty(0, dtype=torch.int64)
        self._hidden = torch.empty(0)
        if prompt.media_rows is not None and prompt.media_hidden is not None:
            self._media_rows, self._hidden = prompt.media_rows.torch(), prompt.media_hidden.torch()
        self._assistant = rows.assistant(prompt, first)

    def __len__(self) -> int:
        return len(self._ids) + len(self._assistant)

    @torch.inference_mode()
    def make(self, start: int, end: int) -> torch.Tensor:
        """The rows [start, end), as [end - start, h]."""
        user = len(self._ids)
        ids = self._ids[start:end]
        made = self._assistant.new_empty(end - start, self._assistant.shape[1])
        made[len(ids) :] = self._assistant[max(start - user, 0) : max(end - user, 0)]
        low, high = torch.searchsorted(self._media_rows, torch.tensor([start, end])).tolist()
        media = self._media_rows[low:high] - start
        is_text = torch.ones(len(ids), dtype=torch.bool)
        is_text[media] = False
        text = is_text.nonzero()[:, 0]
        if len(text):
            made[text] = self._rows.text(ids[text])
        if len(media):
            made[media] = self._rows.media(self._hidden[low:high])
        return made
