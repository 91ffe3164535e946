"""Defines Qwen3-Omni's talker as an SGLang model: a decoder that picks codebook 0 of one codec frame in each step.

Most input rows of the talker are not embeddings of its own tokens. A prompt row is a projected row of the thinker. A
frame's row is the sum of sixteen codec embeddings and a row of text. The engine writes each decode step's rows to
`next_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.qwen2_moe import Qwen2MoeMLP
from sglang.srt.models.qwen3_moe import Qwen3MoeDecoderLayer, Qwen3MoeSparseMoeBlock
from torch import nn

from stages.sglang_engine.models.omni_decoder import OmniDecoder, stored_quantization
from stages.sglang_engine.prompt_rows import PrefillInput

_PREFIX = "talker."
_PREDICTOR = "talker.code_predictor."
_RENAMED = {
    "codec_head.": "lm_head.",
    "model.codec_embedding.": "model.embed_tokens.",
}


class TalkerExperts(Qwen3MoeSparseMoeBlock):
    """Routed experts, and a shared expert that every token passes through. A gate scales the shared expert's result.

    SGLang's own block of this kind (Qwen2-MoE) adds the two results in a Triton kernel, which a CPU cannot run.
    """

    def __init__(self, layer_id: int, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(layer_id, config, quant_config=quant_config, prefix=prefix)
        self.shared_expert = Qwen2MoeMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.shared_expert_intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=quant_config,
            reduce_results=False,
            prefix=f"{prefix}.shared_expert",
        )
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor, forward_batch: ForwardBatch | None = None) -> torch.Tensor:
        shared = torch.sigmoid(self.shared_expert_gate(hidden_states)) * self.shared_expert(hidden_states)
        return super().forward(hidden_states, forward_batch) + shared


class TalkerLayer(Qwen3MoeDecoderLayer):
    """The thinker's decoder layer with the talker's experts."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any = None, prefix: str = "", **more: Any) -> None:
        super().__init__(config, layer_id, quant_config=quant_config, prefix=prefix, **more)
        self.mlp = TalkerExperts(layer_id, config, quant_config=quant_config, prefix=f"{prefix}.mlp")


class ResizeMlp(nn.Module):
    """Projects thinker rows [rows, thinker hidden] to the talker's width: linear, SiLU, linear."""

    def __init__(self, source: int, middle: int, target: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(source, middle)
        self.linear_fc2 = nn.Linear(middle, target)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.linear_fc2(nn.functional.silu(self.linear_fc1(rows)))


class Qwen3OmniTalker(OmniDecoder):
    """The talker, without its code predictor.

    Attributes:
        next_rows: [KV-pool slots, hidden]; the input of each request's next decode step.
        last_states: [KV-pool slots, hidden]; for each request, the latest state after the final norm. The request's
            latest code was picked from this state.
        text_projection, hidden_projection: Project the thinker's embeddings, and its hidden states at layer
            `accept_hidden_layer`.
    """

    tables = ("position_deltas", "next_rows", "last_states")

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(config, quant_config=quant_config, deepstack_layers=0, layer_type=TalkerLayer)
        self.stored = stored_quantization(config, "talker")
        widths = config.thinker_hidden_size, config.intermediate_size, config.hidden_size
        self.text_projection = ResizeMlp(*widths)
        self.hidden_projection = ResizeMlp(*widths)
        self.next_rows = torch.zeros(0)
        self.last_states = torch.zeros(0)

    def make_tables(self, slots: int) -> None:
        super().make_tables(slots)
        table = self.model.embed_tokens.weight
        self.next_rows = torch.zeros(slots, self.config.hidden_size, dtype=table.dtype, device=table.device)
        self.last_states = torch.zeros_like(self.next_rows)

    def decode_states(self, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """The states from which codebook 0 is picked, from the rows in `next_rows`; the ids are ignored."""
        slots = forward_batch.req_pool_indices
        angles = self.current_angles(forward_batch)
        hidden, _ = self.run_layers(input_ids, angles, forward_batch, self.next_rows.index_select(0, slots))
        self.last_states.index_copy_(0, slots, hidden)
        return hidden

    def fill(self, extras: PrefillInput, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        angles = self.current_angles(forward_batch)
        assert extras.media_embeds is not None
        # Copy the rows, because the layers overwrite them. If a request loses its KV memory, it is computed again from
        # the original rows.
        hidden, _ = self.run_layers(input_ids, angles, forward_batch, extras.media_embeds.clone())
        self.last_states[forward_batch.req_pool_indices] = hidden[forward_batch.extend_seq_lens.cumsum(0) - 1]
        return hidden

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the talker from a checkpoint of the complete Qwen3-Omni model.

        Raises:
            StartupError: A tensor is missing.
        """
        self.load_part(
            _PREFIX,
            (
                (_own_name(name), weight)
                for name, weight in weights
                if name.startswith(_PREFIX) and not name.startswith(_PREDICTOR)
            ),
        )


def _own_name(name: str) -> str:
    name = name.removeprefix(_PREFIX)
    for theirs, ours in _RENAMED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


EntryClass = Qwen3OmniTalker
