"""Computes whole frames on a CPU in machine code. A frame consists of several passes of the network, and the choice of
a code after each pass.

The arithmetic is the same as in `ResidualNetwork.frames` and `CodeChoice`, with the same weights. Here, one call
computes a batch of frames. In torch, the same computation needs about a thousand operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.code_predictor.choice import CodeChoice
from stages.code_predictor.network import CachedLayer, Norm, ResidualNetwork
from stages.compiled import FloatArray, compiled
from stages.decoder_kernels import IntArray, attend, gate, normalise, project
from stages.sampling_filters import ALL


class CompiledLayer(NamedTuple):
    """The weights of a `CachedLayer`. Matrices are [out, in]. `input_norm` and `output_norm` are the reference's norm
    weights, without the factor √width of `Norm`.
    """

    input_norm: FloatArray
    qkv: FloatArray
    head_weights: FloatArray
    out: FloatArray
    output_norm: FloatArray
    gate_up: FloatArray
    down: FloatArray

    @classmethod
    def of(cls, layer: CachedLayer) -> CompiledLayer:
        return cls(
            _plain(layer.input_norm),
            layer.qkv.t().numpy(),
            layer.head_weights.numpy(),
            layer.out.t().numpy(),
            _plain(layer.output_norm),
            layer.gate_up.t().numpy(),
            layer.down.t().numpy(),
        )


class RowFilters(NamedTuple):
    """How the codes of each row are chosen. Each field is an array [rows], with the values of `Filters`.

    Attributes:
        greedy: Whether the largest logit is picked. The other values then have no meaning.
    """

    greedy: NDArray[np.bool_]
    temperature: FloatArray
    top_k: IntArray
    top_p: NDArray[np.float64]
    min_p: FloatArray

    @classmethod
    def of(cls, choice: CodeChoice, rows: int, vocab: int) -> RowFilters:
        filters, greedy = choice.filters, np.zeros(rows, np.bool_)
        if filters is None:
            greedy[:] = True
            return cls(greedy, np.ones(rows, np.float32), np.ones(rows, np.int64), np.ones(rows), greedy.astype("f4"))
        if choice.greedy is not None:
            greedy = choice.greedy.numpy()
        return cls(
            greedy,
            filters.temperature[:, 0].numpy(),
            np.full(rows, vocab) if filters.top_k is None else filters.top_k[:, 0].numpy(),
            np.full(rows, ALL) if filters.top_p is None else filters.top_p[:, 0].numpy(),
            np.full(rows, -np.inf, np.float32) if filters.min_p is None else filters.min_p[:, 0].numpy(),
        )


@compiled
def _largest(logits: FloatArray) -> int:
    best = 0
    for code in range(1, len(logits)):
        if logits[code] > logits[best]:
            best = code
    return best


@compiled
def _draw(logits: FloatArray, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """Draw a code from logits [vocab]. The logits are overwritten. For one row, this function does the same as
    `Filters.probabilities` and `pick`.
    """
    vocab = len(logits)
    for code in range(vocab):
        logits[code] /= np.float32(temperature)
    if top_k < vocab:
        candidates = np.sort(np.partition(logits, vocab - top_k)[vocab - top_k :])[::-1]
    else:
        candidates = np.sort(logits)[::-1]
    highest, least = candidates[0], candidates[-1]
    if top_p < ALL:
        mass = 0.0
        for candidate in candidates:
            mass += np.exp(np.float64(candidate) - np.float64(highest))
        before = 0.0
        for candidate in candidates:
            if before >= top_p * mass:
                break
            least = candidate
            before += np.exp(np.float64(candidate) - np.float64(highest))
    least = max(least, highest + np.float32(min_p))
    total = 0.0
    for code in range(vocab):
        if logits[code] >= least:
            total += np.exp(np.float64(logits[code]) - np.float64(highest))
    target, cumulative, last = uniform * total, 0.0, 0
    for code in range(vocab):
        if logits[code] >= least:
            last = code
            cumulative += np.exp(np.float64(logits[code]) - np.float64(highest))
            if cumulative > target:
                break
    return last


@compiled
def _turn(head: FloatArray, weight: FloatArray, floor: float, cos: FloatArray, sin: FloatArray) -> None:
    """Normalise and rotate an attention head, in place. Each number 2i is rotated together with number 2i + 1. See
    `ResidualNetwork._turn`.
    """
    total = np.float32(0.0)
    for i in range(len(head)):
        total += head[i] * head[i]
    factor = np.float32(1.0) / np.sqrt(total + np.float32(floor * floor))
    for i in range(len(cos)):
        a = head[2 * i] * factor * weight[2 * i]
        b = head[2 * i + 1] * factor * weight[2 * i + 1]
        head[2 * i] = a * cos[i] - b * sin[i]
        head[2 * i + 1] = b * cos[i] + a * sin[i]


@compiled
def _run_layers(
    x: FloatArray,
    first: int,
    layers: tuple[CompiledLayer, ...],
    epsilon: float,
    head_floor: float,
    cos: FloatArray,
    sin: FloatArray,
    keys: FloatArray,
    values: FloatArray,
) -> None:
    """Run rows through all layers, in place.

    Args:
        x: [batch · positions, hidden], the rows of each frame at position `first` and at the positions after it.
        keys, values: [layers, batch, all positions, KV heads, head_dim], the cache.
    """
    total, hidden = x.shape
    _, batch, all_positions, kv_heads, width = keys.shape
    count = total // batch
    normed = np.empty((total, hidden), np.float32)
    scores = np.empty(all_positions, np.float32)
    places = np.arange(all_positions).astype(np.int32)
    for index in range(len(layers)):
        layer = layers[index]
        turned = layer.head_weights.shape[0]
        heads = turned - kv_heads
        normalise(x, layer.input_norm, epsilon, normed)
        flat = np.empty((total, layer.qkv.shape[0]), np.float32)
        project(normed, layer.qkv, flat)
        qkv = flat.reshape(total, turned + kv_heads, width)
        attended = np.empty((total, heads * width), np.float32)
        for row in range(total):
            frame, position = row // count, first + row % count
            for head in range(turned):
                _turn(qkv[row, head], layer.head_weights[head], head_floor, cos[position], sin[position])
            keys[index, frame, position] = qkv[row, heads:turned]
            values[index, frame, position] = qkv[row, turned:]
            own = attended[row].reshape(heads, width)
            # the attention's scale is part of the head weights
            attend(qkv[row, :heads], keys[index, frame], values[index, frame], places[: position + 1], 1.0, scores, own)
        project(attended, layer.out, normed)
        x += normed
        normalise(x, layer.output_norm, epsilon, normed)
        inner = np.empty((total, layer.gate_up.shape[0]), np.float32)
        gated = np.empty((total, layer.down.shape[1]), np.float32)
        project(normed, layer.gate_up, inner)
        gate(inner, gated)
        project(gated, layer.down, normed)
        x += normed


@compiled
def _frames(
    hidden: FloatArray,
    codes: IntArray,
    sums: FloatArray,
    filters: RowFilters,
    uniforms: NDArray[np.float64],
    embeddings: tuple[FloatArray, ...],
    lm_heads: tuple[FloatArray, ...],
    layers: tuple[CompiledLayer, ...],
    norm: FloatArray,
    epsilon: float,
    head_floor: float,
    cos: FloatArray,
    sin: FloatArray,
    kv_heads: int,
) -> None:
    """Complete some frames.

    Args:
        hidden: [batch, hidden], the talker's states.
        codes: int64 [batch, codebooks]. The codes of codebook 0 are given; the codes of other codebooks are results.
        sums: [batch, hidden], a result: for each frame, the sum of the embeddings of its codes.
        filters, uniforms: How the codes are chosen; `uniforms` are [batch, codebooks - 1].
        embeddings, lm_heads: The tables of all codebooks, and the output matrices of all residual codebooks.
        cos, sin: [positions, head_dim / 2].
    """
    batch, width = hidden.shape
    shape = (len(layers), batch, len(cos), kv_heads, 2 * cos.shape[1])
    keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
    opening = np.empty((2 * batch, width), np.float32)
    for row in range(batch):
        sums[row] = embeddings[0][codes[row, 0]]
        opening[2 * row], opening[2 * row + 1] = hidden[row], sums[row]
    _run_layers(opening, 0, layers, epsilon, head_floor, cos, sin, keys, values)
    x = opening[1::2].copy()
    normed = np.empty((batch, width), np.float32)
    for codebook in range(1, codes.shape[1]):
        lm_head = lm_heads[codebook - 1]
        logits = np.empty((batch, lm_head.shape[0]), np.float32)
        normalise(x, norm, epsilon, normed)
        project(normed, lm_head, logits)
        for row in range(batch):
            if filters.greedy[row]:
                code = _largest(logits[row])
            else:
                code = _draw(
                    logits[row],
                    filters.temperature[row],
                    filters.top_k[row],
                    filters.top_p[row],
                    filters.min_p[row],
                    uniforms[row, codebook - 1],
                )
            codes[row, codebook] = code
            x[row] = embeddings[codebook][code]
        sums += x
        if codebook + 1 < codes.shape[1]:
            _run_layers(x, codebook + 1, layers, epsilon, head_floor, cos, sin, keys, values)


class CompiledFrames:
    """Computes frames with the weights of a network.

    Args:
        network: A network for which `suits` is true.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        self._network = network
        self._embeddings = tuple(table.detach().numpy() for table in network.embeddings)
        self._lm_heads = tuple(head.t().detach().numpy() for head in network.lm_heads)
        self._layers = tuple(CompiledLayer.of(layer) for layer in network.layers)
        self._norm = _plain(network.norm)
        self._epsilon = float(network.norm.floor) ** 2 / network.hidden_size
        self._cos = network.rotations[:, 0].real.contiguous().numpy()
        self._sin = network.rotations[:, 0].imag.contiguous().numpy()

    @staticmethod
    def suits(network: ResidualNetwork) -> bool:
        """Whether the network runs in float32 on a CPU, with one thread."""
        return network.device.type == "cpu" and network.dtype == torch.float32 and torch.get_num_threads() == 1

    def frames(self, hidden: Tensor, first_codes: Tensor, choice: CodeChoice) -> tuple[Tensor, Tensor]:
        """Does the same as `ResidualNetwork.frames`."""
        network, batch = self._network, len(hidden)
        codes = torch.empty(batch, network.codebooks, dtype=torch.int64)
        codes[:, 0] = first_codes
        sums = torch.empty_like(hidden)
        uniforms = np.empty((batch, 0)) if choice.uniforms is None else choice.uniforms.numpy()
        _frames(
            hidden.contiguous().numpy(),
            codes.numpy(),
            sums.numpy(),
            RowFilters.of(choice, batch, network.vocab),
            uniforms,
            self._embeddings,
            self._lm_heads,
            self._layers,
            self._norm,
            self._epsilon,
            float(network.head_floor),
            self._cos,
            self._sin,
            network.kv_heads,
        )
        return codes, sums


def _plain(norm: Norm) -> FloatArray:
    """The weight of a norm without the factor √width that `Norm` contains."""
    weight: FloatArray = (norm.weight / math.sqrt(len(norm.weight))).numpy()
    return weight
