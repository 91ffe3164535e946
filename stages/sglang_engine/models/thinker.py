"""Qwen3-Omni's thinker as an SGLang model: its text decoder, fed with encoder rows and deepstack from outside.

SGLang's own definition of this model carries both encoders and gets media through its tokenizer manager. Here encoders
are stages of their own, so that what is left is SGLang's Qwen3-MoE decoder with three things changed: the angles of the
rotary embedding (see `rotary`), the embedding rows of media, and where deepstack is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.qwen3_moe import Qwen3MoeForCausalLM
from sglang.srt.models.qwen3_vl_moe import Qwen3MoeLLMModel
from sglang.srt.runtime_context import get_parallel
from torch import nn

from omni_pipeline.errors import StartupError
from stages.sglang_engine.completeness import missing_tensors
from stages.sglang_engine.prompt_rows import PrefillInput
from stages.sglang_engine.rotary import ApplyAngles, InterleavedAngles

_PREFIX = "thinker."
_ENCODERS = ("thinker.visual.", "thinker.audio_tower.")


class Qwen3OmniThinker(Qwen3MoeForCausalLM):
    """Text decoder of the thinker. The engine sets `prefill` before each prefill batch.

    Attributes:
        prefill: The extras of the batch about to run; None while decoding.
        position_deltas: float32 [KV-pool slots]; position minus index of generated tokens. A table at a fixed address,
            so that a captured decode graph reads it as it is.
    """

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        nn.Module.__init__(self)
        text = config.thinker_config.text_config
        self.config = text
        self.quant_config = quant_config
        self.pp_group = get_parallel().pp_group
        self.model = Qwen3MoeLLMModel(config=text, quant_config=quant_config, prefix="model")
        self.lm_head = ParallelLMHead(text.vocab_size, text.hidden_size, quant_config=quant_config, prefix="lm_head")
        self.logits_processor = LogitsProcessor(text)
        self.capture_aux_hidden_states = False

        self.model.deepstack_embed_to_decoder_layer = range(
            len(config.thinker_config.vision_config.deepstack_visual_indexes)
        )
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        rope = text.rope_parameters
        self.angles = InterleavedAngles(head_dim, rope["rope_theta"], rope["mrope_section"])
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.rotary_emb = ApplyAngles(head_dim)
            attention.compatible_with_fused_kv_buffer = False
            attention.use_fused_qk_norm_rope = False
            attention.use_fused_qk_norm_rope_cpu = False

        self.prefill: PrefillInput | None = None
        self.position_deltas = torch.zeros(0)

    def reserve_slots(self, slots: int) -> None:
        """Make room in `position_deltas` for that many KV-pool slots, once they are known."""
        self.position_deltas = torch.zeros(slots, dtype=torch.float32, device=self.angles.inverse.device)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
        pp_proxy_tensors: Any = None,
    ) -> LogitsProcessorOutput:
        """Logits of the last token of each request.

        Args:
            input_ids: int64 [tokens]; at media rows the numbers that key the prefix cache, beyond the vocabulary.
        """
        deepstack = None
        if self.prefill is not None:
            extras = self.prefill
            self.position_deltas[extras.slots] = extras.deltas
            angles = self.angles(extras.positions)
            hidden = self.model.embed_tokens(input_ids.clamp(max=self.config.vocab_size - 1))
            if extras.media_index is not None:
                hidden[extras.media_index] = extras.media_embeds
            if extras.visual_index is not None and extras.deepstack is not None:
                deepstack = _spread(extras.deepstack, extras.visual_index, hidden.shape[0])
        else:
            slots = forward_batch.req_pool_indices
            angles = self.angles(forward_batch.positions + self.position_deltas[slots])
            hidden = self.model.embed_tokens(input_ids)
        hidden = self.model(input_ids, angles, forward_batch, hidden, input_deepstack_embeds=deepstack)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the thinker's decoder out of a whole Qwen3-Omni checkpoint.

        Raises:
            StartupError: some of it is not there.
        """
        loaded: set[str] = set()

        def own() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in weights:
                if name.startswith(_PREFIX) and not name.startswith(_ENCODERS):
                    loaded.add(name.removeprefix(_PREFIX))
                    yield name.removeprefix(_PREFIX), weight

        super().load_weights(own())
        missing = missing_tensors((name for name, _ in self.named_parameters()), loaded, self.config.num_experts)
        if missing:
            raise StartupError(
                f"the checkpoint lacks {len(missing)} of the thinker's weights, such as {_PREFIX}{missing[0]}; "
                "download it again"
            )


def _spread(deepstack: torch.Tensor, index: torch.Tensor, tokens: int) -> torch.Tensor:
    """Deepstack rows [layers, rows, hidden] as the decoder wants them: [tokens, layers·hidden], zero elsewhere."""
    layers, rows, width = deepstack.shape
    spread = deepstack.new_zeros(tokens, layers * width)
    spread[index] = deepstack.permute(1, 0, 2).reshape(rows, layers * width)
    return spread


EntryClass = Qwen3OmniThinker
