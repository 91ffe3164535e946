"""Defines Qwen3-Omni's thinker as an SGLang model: a text decoder that gets media rows from other stages.

SGLang's own definition of this model includes both encoders and gets media through its tokenizer manager. In this
server the encoders are separate stages. So this model is SGLang's Qwen3-MoE decoder with four changes: the angles of
the rotary embedding (see `rotary`), the embedding rows of media, the place where deepstack is added, and a tap for the
talker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from stages.sglang_engine.models.omni_decoder import OmniDecoder, stored_quantization
from stages.sglang_engine.prompt_rows import PrefillInput

_PREFIX = "thinker."
_ENCODERS = ("thinker.visual.", "thinker.audio_tower.")


class Qwen3OmniThinker(OmniDecoder):
    """Text decoder of the thinker.

    Attributes:
        tapped: [KV-cache tokens, hidden]: the states of prompt rows that the talker gets. The states have the same
            places as the keys and values in the KV cache, so that a prefix-cache hit finds the states too. None unless
            `tap` was called.
    """

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        thinker = config.thinker_config
        super().__init__(
            thinker.text_config,
            quant_config=quant_config,
            deepstack_layers=len(thinker.vision_config.deepstack_visual_indexes),
        )
        self.stored = stored_quantization(config, "thinker")
        self._tap_layer: int | None = None
        self.tapped: torch.Tensor | None = None

    def tap(self, layer: int, kv_tokens: int) -> None:
        """From now on, keep the state of each prompt row that enters decoder layer `layer` (the reference's
        ``hidden_states[layer]``).

        Args:
            kv_tokens: Number of places in the KV cache.
        """
        if not 0 < layer < len(self.model.layers):
            raise ValueError(f"accept_hidden_layer {layer} is not inside a decoder of {len(self.model.layers)} layers")
        self._tap_layer = layer
        table = self.model.embed_tokens.weight
        self.tapped = torch.zeros(kv_tokens, self.config.hidden_size, dtype=table.dtype, device=table.device)

    def fill(self, extras: PrefillInput, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """The hidden states [tokens, hidden] of the prompt pieces in a prefill batch.

        Args:
            input_ids: int64 [tokens]; at media rows, the prefix cache's numbers, which are beyond the vocabulary.
        """
        angles = self.current_angles(forward_batch)
        rows = self.model.embed_tokens(input_ids.clamp(max=self.config.vocab_size - 1))
        if extras.media_index is not None:
            rows[extras.media_index] = extras.media_embeds
        deepstack = None
        if extras.visual_index is not None and extras.deepstack is not None:
            deepstack = _spread(extras.deepstack, extras.visual_index, len(rows))
        layer = self._tap_layer
        if layer is None or self.tapped is None:
            return self.model(input_ids, angles, forward_batch, rows, input_deepstack_embeds=deepstack)
        self.model.layers_to_capture = [layer]
        hidden, [state] = self.model(input_ids, angles, forward_batch, rows, input_deepstack_embeds=deepstack)
        self.model.layers_to_capture = []
        if deepstack is not None and extras.deepstack is not None and layer <= len(extras.deepstack):
            # The reference records a layer's output before deepstack is added to it.
            state = state - deepstack[:, (layer - 1) * state.shape[1] : layer * state.shape[1]]
        self.tapped[forward_batch.out_cache_loc] = state
        return hidden

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the thinker's decoder from a checkpoint of the complete Qwen3-Omni model.

        Raises:
            StartupError: A tensor is missing.
        """
        self.load_part(
            _PREFIX,
            (
                (name.removeprefix(_PREFIX), weight)
                for name, weight in weights
                if name.startswith(_PREFIX) and not name.startswith(_ENCODERS)
            ),
        )


def _spread(deepstack: torch.Tensor, index: torch.Tensor, tokens: int) -> torch.Tensor:
    """Converts deepstack rows [layers, rows, hidden] to the form that the decoder reads: [tokens, layers·hidden], with
    zeros at all other tokens.
    """
    layers, rows, width = deepstack.shape
    spread = deepstack.new_zeros(tokens, layers * width)
    spread[index] = deepstack.permute(1, 0, 2).reshape(rows, layers * width)
    return spread


EntryClass = Qwen3OmniThinker
