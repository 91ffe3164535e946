"""Defines Qwen3-Omni's thinker as an SGLang model: a text decoder that gets media rows from other stages.

SGLang's own definition of this model includes both encoders and gets media through its tokenizer manager. In this
server the encoders are separate stages. So this model is SGLang's Qwen3-MoE decoder with four changes:
- it uses the angles of `rotary`;
- it accepts embedding rows for media;
- it adds deepstack rows, but not at the same place as SGLang's definition;
- it copies hidden states for the talker.
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
        tapped: [KV-cache tokens, hidden]: the states of prompt rows for the talker. A token's state has the same index
            as its key and value in the KV cache, so a prefix-cache hit finds the state too. None before `tap` is
            called.
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
            kv_tokens: Number of tokens that the KV cache can hold.
        """
        if not 0 < layer < len(self.model.layers):
            raise ValueError(
                f"accept_hidden_layer is {layer}, but it must be between 1 and {len(self.model.layers) - 1}, because "
                f"the decoder has {len(self.model.layers)} layers"
            )
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
        hidden, state = self.run_layers(input_ids, angles, forward_batch, rows, deepstack=deepstack, tap=layer)
        if layer is None or state is None or self.tapped is None:
            return hidden
        if deepstack is not None and extras.deepstack is not None and layer <= len(extras.deepstack):
            # The deepstack rows are subtracted again, because the reference records the output of a layer before the
            # deepstack rows are added.
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
