"""Defines the common base class of the SGLang models for thinker and talker: a Qwen3-MoE decoder whose inputs may be
embedding rows and M-RoPE positions.

The engine sets `prefill` before each prefill batch. The data that decode steps need is in tables at fixed addresses, so
that a captured decode graph can read it. A table has one row for each KV-pool slot. SGLang assigns one KV-pool slot to
each running request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.forward_context import get_req_to_token_pool
from sglang.srt.models.qwen3_moe import Qwen3MoeDecoderLayer, Qwen3MoeForCausalLM
from sglang.srt.models.qwen3_vl_moe import Qwen3MoeLLMModel
from sglang.srt.platforms import current_platform
from sglang.srt.runtime_context import get_parallel
from torch import nn

from omni_pipeline.errors import StartupError
from stages.checkpoint import quantization
from stages.checkpoint.quantization import Quantization
from stages.sglang_engine import float32_forms
from stages.sglang_engine.compiled_layers import BatchRows, CompiledLayers
from stages.sglang_engine.completeness import missing_tensors, stray_tensors
from stages.sglang_engine.decode_trace import DecodeTrace
from stages.sglang_engine.dequantise import plain_weights
from stages.sglang_engine.engine_config import STORED
from stages.sglang_engine.packed_head import OmniLogits
from stages.sglang_engine.prompt_rows import PrefillInput
from stages.sglang_engine.rotary import ApplyAngles, InterleavedAngles


class OmniDecoder(Qwen3MoeForCausalLM):
    """Base class of the thinker's and the talker's model.

    Args:
        text: The decoder's config.
        deepstack_layers: Number of layers, counted from the first, after which deepstack rows are added.
        layer_type: Class of a decoder layer.

    Attributes:
        tables: Names of the tensors that decoding reads or writes besides weights and KV cache.
        stored: The quantisation of the checkpoint's weights, if the model is built for unquantised weights.
        compiled: The layers in machine code, if there are any.
        recorded: The recording that decodes without Python, if there is one. Not used if `compiled` is set.
        prefill: The data of the prefill batch that is about to run, besides token ids; None for a decode batch.
        position_deltas: float32 [KV-pool slots]. For the request in each slot, the difference between position and
            index of every token after the prompt.
    """

    tables: tuple[str, ...] = ("position_deltas",)

    def __init__(
        self, text: Any, *, quant_config: Any, deepstack_layers: int, layer_type: type[nn.Module] = Qwen3MoeDecoderLayer
    ) -> None:
        nn.Module.__init__(self)
        self.config = text
        self.stored: Quantization | None = None
        self.quant_config = quant_config
        self.pp_group = get_parallel().pp_group
        self.model = Qwen3MoeLLMModel(
            config=text, quant_config=quant_config, prefix="model", decoder_layer_type=layer_type
        )
        self.model.deepstack_embed_to_decoder_layer = range(deepstack_layers)
        self.lm_head = ParallelLMHead(text.vocab_size, text.hidden_size, quant_config=quant_config, prefix="lm_head")
        self.logits_processor = OmniLogits(text)
        self.capture_aux_hidden_states = False

        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        rope = text.rope_parameters
        self.angles = InterleavedAngles(head_dim, rope["rope_theta"], rope["mrope_section"])
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.rotary_emb = ApplyAngles(head_dim)
            attention.compatible_with_fused_kv_buffer = False
            attention.use_fused_qk_norm_rope = False
            attention.use_fused_qk_norm_rope_cpu = False
        if current_platform.is_cuda() and self.model.embed_tokens.weight.dtype == torch.float32:
            float32_forms.install(self)

        self.compiled: CompiledLayers | None = None
        self.recorded: DecodeTrace | None = None
        self.prefill: PrefillInput | None = None
        self.position_deltas = torch.zeros(0)

    def reserve(self, slots: int) -> None:
        """Make the tables for `slots` KV-pool slots. Tables of this size that exist already are kept, because captured
        steps contain their addresses.
        """
        if len(self.position_deltas) != slots:
            self.make_tables(slots)

    def make_tables(self, slots: int) -> None:
        self.position_deltas = torch.zeros(slots, dtype=torch.float32, device=self.angles.inverse.device)

    def load_part(self, part: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load one part of the checkpoint. In the checkpoint, the names of the part's weights have the prefix `part`.
        In `weights`, these weights already have the names that this model uses.

        Raises:
            StartupError: Weights are missing. Or weights are quantised although, according to the checkpoint's config,
                their layers are not quantised.
        """
        loaded: set[str] = set()

        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in plain_weights(weights, self.stored) if self.stored else weights:
                loaded.add(name)
                yield name, weight

        super().load_weights(noted())
        parameters = [name for name, _ in self.named_parameters()]
        missing = missing_tensors(parameters, loaded, self.config.num_experts)
        if missing:
            raise StartupError(
                f"the checkpoint lacks {len(missing)} of the weights {part}*, such as {missing[0]}; "
                "download the checkpoint again"
            )
        stray = stray_tensors(parameters, loaded, self.config.num_experts)
        if stray:
            raise StartupError(
                f"the checkpoint has tensors of quantised weights among {part}*, such as {stray[0]}, but according "
                "to quantization_config, these layers are not quantised"
            )

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
        pp_proxy_tensors: Any = None,
    ) -> LogitsProcessorOutput:
        """Logits for the last token of each request. SGLang prescribes the signature."""
        if not len(self.position_deltas):  # SGLang captures decode steps before the engine exists
            self.reserve(len(get_req_to_token_pool().req_to_token))
        if self.prefill is None:
            return (self.recorded or self.decode)(input_ids, forward_batch)
        hidden = self.fill(self.prefill, input_ids, forward_batch)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def decode(self, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> LogitsProcessorOutput:
        """Logits for one more token of each request. `input_ids` is int64 [requests]."""
        hidden = self.decode_states(input_ids, forward_batch)
        if self.compiled is not None:
            return LogitsProcessorOutput(self.logits_processor.all_logits(hidden, self.lm_head))
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def decode_states(self, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """The states [requests, hidden], after the final norm, from which the logits are computed."""
        return self.run_layers(input_ids, self.current_angles(forward_batch), forward_batch)[0]

    def run_layers(
        self,
        input_ids: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        forward_batch: ForwardBatch,
        rows: torch.Tensor | None = None,
        *,
        deepstack: torch.Tensor | None = None,
        tap: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run a batch through all layers and the final norm.

        Args:
            input_ids: int64 [tokens]; not used if there are `rows`.
            angles: Rotary angles in the format that `current_angles` returns.
            rows: [tokens, hidden], the layers' input, which may be overwritten.
            deepstack: [tokens, layers · hidden], the values to add to the states after each of the first layers.
            tap: Index of a layer whose input states are returned too. These states include the deepstack rows that are
                added after the previous layer.

        Returns:
            The final states [tokens, hidden], and the states that enter layer `tap`.
        """
        if self.compiled is not None:
            places = BatchRows.of(forward_batch)
            if self.compiled.can_run(places):
                x = self.model.embed_tokens(input_ids) if rows is None else rows
                return self.compiled.run(x.contiguous(), angles, places, deepstack=deepstack, tap=tap)
        if tap is None:
            return self.model(input_ids, angles, forward_batch, rows, input_deepstack_embeds=deepstack), None
        self.model.layers_to_capture = [tap]
        hidden, [state] = self.model(input_ids, angles, forward_batch, rows, input_deepstack_embeds=deepstack)
        self.model.layers_to_capture = []
        return hidden, state

    def fill(self, extras: PrefillInput, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """The hidden states [tokens, hidden] of the prompt pieces in a prefill batch."""
        raise NotImplementedError

    def current_angles(self, forward_batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary angles of the tokens in the batch. `Qwen3MoeLLMModel` gets them in place of positions."""
        if self.prefill is not None:
            self.position_deltas[self.prefill.slots] = self.prefill.deltas
            return self.angles(self.prefill.positions)
        return self.angles(forward_batch.positions + self.position_deltas[forward_batch.req_pool_indices])


def stored_quantization(config: Any, part: str) -> Quantization | None:
    """The quantisation of the checkpoint's weights, if the model is built for unquantised weights; otherwise None."""
    said = getattr(config, STORED, None)
    return quantization.read({"quantization_config": said}, part) if said else None
