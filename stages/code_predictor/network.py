"""Runs the transformer for residual codes over a static KV cache, with as few operations as possible.

A frame needs fifteen passes of one or two rows through a small model. The time for a pass depends on the number of
operations, not on the arithmetic. So this module uses few operations:
- weights with the same input are joined;
- the attention's scale is multiplied into the weights of the head norms;
- the rotary factors of all positions are computed beforehand.

All tensor sizes follow from the batch size, so that a frame can be recorded and repeated (see `graphs`). Norms, rotary
angles and attention scores are always float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Chooses codes int64 [batch] from the logits [batch, vocab] of a residual codebook, counted from 0.
Choose = Callable[[Tensor, int], Tensor]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts x to a data type. If x already has this type, the function does nothing. In the same case, `Tensor.to`
    would add an operation to a recording.
    """
    return x if x.dtype == dtype else x.to(dtype)


class Norm(NamedTuple):
    """An RMS norm over the last axis, in the form x / hypot(|x|, floor) · weight.

    Attributes:
        weight: float32 [width], the norm's own weight times √width.
        floor: float32 scalar, √(width · epsilon).
    """

    weight: Tensor
    floor: Tensor

    @classmethod
    def of(cls, weight: Tensor, epsilon: float) -> Norm:
        width = weight.shape[-1]
        return cls(weight.float() * math.sqrt(width), torch.tensor(math.sqrt(width * epsilon), device=weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., width] after normalisation, in the data type of x."""
        wide = _cast(x, torch.float32)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).hypot_(self.floor)
        return _cast(wide.div(length).mul_(self.weight), x.dtype)


class CachedLayer(NamedTuple):
    """One decoder layer; its matrices are transposed views [in, out], as `torch.mm` expects them.

    Attributes:
        qkv: [hidden, (heads + 2 · kv heads) · head_dim].
        head_weights: float32 [heads + kv heads, head_dim]: the norm weights of queries and keys. The halves of each
            head are interleaved, so that two numbers that are rotated together are neighbours. The weights of queries
            also contain the attention's scale.
        gate_up: [hidden, 2 · intermediate].
    """

    input_norm: Norm
    qkv: Tensor
    head_weights: Tensor
    out: Tensor
    output_norm: Norm
    gate_up: Tensor
    down: Tensor


class Places(NamedTuple):
    """Views of one layer's cache for one batch size at one position, or at the first two positions.

    Attributes:
        new_keys: [batch, kv heads, head_dim, rows], where this pass writes its keys.
        new_values: [batch, kv heads, rows, head_dim], where this pass writes its values.
        keys: [batch · kv heads, head_dim, positions so far].
        values: [batch · kv heads, positions so far, head_dim].
    """

    new_keys: Tensor
    new_values: Tensor
    keys: Tensor
    values: Tensor


class ResidualNetwork:
    """Computes frames for several utterances at once.

    Args:
        model: The reference's code predictor. The network takes over the model's weights, so the caller may drop the
            model.
        first_codebook: [vocab, hidden], the talker's codec embedding.
        max_batch: Maximum number of frames computed at once.

    Attributes:
        codebooks: Number of codes in a frame, codebook 0 included.
        vocab: Number of different codes in each residual codebook.
        first_vocab: Number of the talker's ids. Some of these ids are the codes of codebook 0. The other ids are not
            codec codes.
        embeddings: The codec embedding of each codebook, [codes, hidden].
        lm_heads: The output matrix of each residual codebook, [hidden, vocab].
        layers, norm: The decoder layers, and the norm after them.
        head_floor: The floor of the norms of queries and keys.
        rotations: complex64 [positions, 1, head_dim / 2], the rotary factors.
    """

    def __init__(self, model: Any, first_codebook: Tensor, max_batch: int) -> None:
        config = model.config
        self.codebooks: int = config.num_code_groups
        self.vocab: int = config.vocab_size
        self.first_vocab = len(first_codebook)
        self.hidden_size: int = config.hidden_size
        self.max_batch = max_batch
        self.device = first_codebook.device
        self.dtype = first_codebook.dtype
        self._heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self._head_dim: int = config.head_dim
        self.embeddings = [first_codebook, *(table.weight for table in model.model.codec_embedding)]
        self.lm_heads = [head.weight.t() for head in model.lm_head]
        self.layers = [self._take_over(layer, config.rms_norm_eps) for layer in model.model.layers]
        self.norm = Norm.of(model.model.norm.weight, config.rms_norm_eps)
        self.head_floor: Tensor = Norm.of(model.model.layers[0].self_attn.q_norm.weight, config.rms_norm_eps).floor
        # One position for the talker's state, and one for each code except the last. The embedding of the last code is
        # a part of the sum of embeddings, but is never an input of the network.
        self._positions = self.codebooks
        positions = torch.arange(self._positions, device=self.device)[None]
        cos, sin = model.model.rotary_emb(torch.empty(0, dtype=torch.float32, device=self.device), positions)
        half = self._head_dim // 2
        self.rotations = torch.complex(cos[0, :, :half], sin[0, :, :half])[:, None]
        self._later = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]], device=self.device)

    def frames(self, hidden: Tensor, first_codes: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
        """One frame for each utterance of a batch.

        Args:
            hidden: [batch, hidden], the talker's states.
            first_codes: int64 [batch], codes of codebook 0.
            choose: Picks the codes of each residual codebook.

        Returns:
            Codes int64 [batch, codebooks], and the sum of their embeddings [batch, hidden].
        """
        batch = len(hidden)
        places = self._places(batch)
        codes = [first_codes]
        embeddings = [self.embeddings[0].index_select(0, first_codes)]
        x = torch.stack((hidden, embeddings[0]), 1).view(batch * 2, self.hidden_size)
        x = self._pass(x, 2, self.rotations[:2], places[0]).view(batch, 2, self.hidden_size)[:, 1]
        for codebook in range(1, self.codebooks):
            logits = torch.mm(self.norm(x), self.lm_heads[codebook - 1])
            codes.append(choose(logits, codebook - 1))
            embeddings.append(self.embeddings[codebook].index_select(0, codes[-1]))
            if codebook + 1 < self.codebooks:
                position = codebook + 1
                x = self._pass(embeddings[-1], 1, self.rotations[position], places[codebook])
        return torch.stack(codes, 1), torch.stack(embeddings, 1).sum(1)

    def _pass(self, x: Tensor, rows: int, rotations: Tensor, places: list[Places]) -> Tensor:
        """Run x [batch · rows, hidden] through all layers, without the final norm."""
        batch = len(x) // rows
        heads, kv_heads, head_dim = self._heads, self.kv_heads, self._head_dim
        turned = heads + kv_heads
        intermediate = self.layers[0].down.shape[0]
        for layer, place in zip(self.layers, places, strict=True):
            qkv = torch.mm(layer.input_norm(x), layer.qkv).view(batch, rows, turned + kv_heads, head_dim)
            qk = self._turn(qkv.narrow(2, 0, turned), layer, rotations)
            place.new_keys.copy_(qk.narrow(2, heads, kv_heads).permute(0, 2, 3, 1))
            place.new_values.copy_(qkv.narrow(2, turned, kv_heads).transpose(1, 2))
            queries = qk.narrow(2, 0, heads)
            if rows > 1:
                queries = queries.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
            attended = self._attend(queries.reshape(batch * kv_heads, -1, head_dim), rows, place)
            if rows > 1:
                attended = attended.view(batch, kv_heads, -1, rows, head_dim).permute(0, 3, 1, 2, 4)
            x = torch.addmm(x, attended.reshape(batch * rows, heads * head_dim), layer.out)
            gate_up = torch.mm(layer.output_norm(x), layer.gate_up)
            gated = functional.silu(gate_up.narrow(1, 0, intermediate)).mul_(
                gate_up.narrow(1, intermediate, intermediate)
            )
            x = torch.addmm(x, gated, layer.down)
        return x

    def _turn(self, qk: Tensor, layer: CachedLayer, rotations: Tensor) -> Tensor:
        """Queries and keys, float32 [batch, rows, heads + kv heads, head_dim], normalised per head and rotated."""
        wide = _cast(qk, torch.float32)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).hypot_(self.head_floor)
        normed = (wide * layer.head_weights).div_(length)
        pairs = torch.view_as_complex(normed.unflatten(-1, (-1, 2)))
        pairs.mul_(rotations)  # this rotates `normed` in place, because `pairs` is a view of `normed`
        return normed

    def _attend(self, queries: Tensor, rows: int, place: Places) -> Tensor:
        """Attention of scaled queries [batch · kv heads, query heads per kv head · rows, head_dim] over the cache."""
        scores = torch.bmm(_cast(queries, self.dtype), place.keys)
        if rows > 1:
            scores = (scores.unflatten(1, (-1, rows)) + self._later).flatten(1, 2)
        return torch.bmm(_cast(_cast(scores, torch.float32).softmax(-1), self.dtype), place.values)

    def _take_over(self, layer: Any, epsilon: float) -> CachedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        query = Norm.of(attention.q_norm.weight, epsilon).weight * self._head_dim**-0.5
        key = Norm.of(attention.k_norm.weight, epsilon).weight
        weights = torch.cat((query.expand(self._heads, -1), key.expand(self.kv_heads, -1)))
        qkv = torch.cat(
            (
                self._paired(attention.q_proj.weight.unflatten(0, (self._heads, -1))).flatten(0, 1),
                self._paired(attention.k_proj.weight.unflatten(0, (self.kv_heads, -1))).flatten(0, 1),
                attention.v_proj.weight,
            )
        )
        return CachedLayer(
            input_norm=Norm.of(layer.input_layernorm.weight, epsilon),
            qkv=qkv.t(),
            head_weights=self._paired(weights).contiguous(),
            out=attention.o_proj.weight.t(),
            output_norm=Norm.of(layer.post_attention_layernorm.weight, epsilon),
            gate_up=torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).t(),
            down=mlp.down_proj.weight.t(),
        )

    def _paired(self, heads: Tensor) -> Tensor:
        """Heads [heads, head_dim, …] whose halves are interleaved. The reference rotates the numbers i and
        i + head_dim / 2 of a head together. In the result, these two numbers are neighbours.
        """
        return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    def _places(self, batch: int) -> list[list[Places]]:
        """Makes a new cache. Returns one list for each pass, with the views for each layer. The first pass has two
        rows, for the first two positions. Each later pass has one row, for the next position.

        Each frame gets a new cache, so that making the cache is a part of the frame's recording. If a trace referred to
        an existing cache, TorchScript would treat the cache as a constant. It might merge this constant with another
        constant. Then data that is written to the cache would be lost.
        """
        slots, width = batch * self.kv_heads, self._head_dim
        spans = [(0, 2), *((position, position + 1) for position in range(2, self._positions))]
        passes: list[list[Places]] = [[] for _ in spans]
        for _ in self.layers:
            keys = torch.empty(slots, width, self._positions, dtype=self.dtype, device=self.device)
            values = torch.empty(slots, self._positions, width, dtype=self.dtype, device=self.device)
            for places, (start, stop) in zip(passes, spans, strict=True):
                places.append(
                    Places(
                        new_keys=keys.narrow(2, start, stop - start).unflatten(0, (batch, -1)),
                        new_values=values.narrow(1, start, stop - start).unflatten(0, (batch, -1)),
                        keys=keys.narrow(2, 0, stop),
                        values=values.narrow(1, 0, stop),
                    )
                )
        return passes
