"""Computes the parts of a transformer's decoder layer in machine code, for a few rows on a CPU, in float32.

A row is one token of one request. The arguments of the kernels are numpy arrays that share memory with torch's tensors.
The kernels write their results into arrays of the caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.compiled import FloatArray, compiled, inlined

IntArray = NDArray[np.int64]

# From this number of rows on, BLAS is faster than the loops of `project`. Before BLAS multiplies, it packs the matrix,
# which is worthwhile only for many rows.
_MANY_ROWS = 32

_LOG2_E = np.float32(1.4426950408889634)
# The natural logarithm of two as a sum of two numbers.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)


@inlined
def exponential(x: Any) -> Any:
    """e to the power of x, with an error of at most 2 units in the last place. For x below -87, the result is nearly 0.
    The compiler can vectorise this function, but not the function of the C library.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    power = np.floor(x * _LOG2_E + np.float32(0.5))
    rest = x - power * _LN2_HIGH - power * _LN2_LOW
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    series = series * rest * rest + rest + np.float32(1.0)
    return series * np.int32((np.int32(power) + 127) << 23).view(np.float32)


@inlined
def sigmoid(x: Any) -> Any:
    return np.float32(1.0) / (np.float32(1.0) + exponential(-x))


@compiled
def project(x: FloatArray, weight: FloatArray, result: FloatArray) -> None:
    """The product of x [rows, in] and the transpose of weight [out, in]: result [rows, out].

    Four rows of x and four rows of the weight are multiplied at once. So each number that is read is used four times.
    """
    rows, width = x.shape
    if rows >= _MANY_ROWS:
        np.dot(x, weight.T, result)
        return
    zero = np.float32(0.0)
    outputs = weight.shape[0] // 4 * 4
    for j in range(0, outputs, 4):
        w0, w1, w2, w3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        row = 0
        while row + 4 <= rows:
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
            for k in range(width):
                v0, v1, v2, v3 = w0[k], w1[k], w2[k], w3[k]
                a, b, c, d = x0[k], x1[k], x2[k], x3[k]
                s00 += a * v0
                s01 += a * v1
                s02 += a * v2
                s03 += a * v3
                s10 += b * v0
                s11 += b * v1
                s12 += b * v2
                s13 += b * v3
                s20 += c * v0
                s21 += c * v1
                s22 += c * v2
                s23 += c * v3
                s30 += d * v0
                s31 += d * v1
                s32 += d * v2
                s33 += d * v3
            y0 = result[row]
            y0[j], y0[j + 1], y0[j + 2], y0[j + 3] = s00, s01, s02, s03
            result[row + 1, j], result[row + 1, j + 1], result[row + 1, j + 2], result[row + 1, j + 3] = (
                s10,
                s11,
                s12,
                s13,
            )
            result[row + 2, j], result[row + 2, j + 1], result[row + 2, j + 2], result[row + 2, j + 3] = (
                s20,
                s21,
                s22,
                s23,
            )
            result[row + 3, j], result[row + 3, j + 1], result[row + 3, j + 2], result[row + 3, j + 3] = (
                s30,
                s31,
                s32,
                s33,
            )
            row += 4
        while row < rows:
            x0 = x[row]
            s0 = s1 = s2 = s3 = zero
            for k in range(width):
                a = x0[k]
                s0 += a * w0[k]
                s1 += a * w1[k]
                s2 += a * w2[k]
                s3 += a * w3[k]
            result[row, j], result[row, j + 1], result[row, j + 2], result[row, j + 3] = s0, s1, s2, s3
            row += 1
    for j in range(outputs, weight.shape[0]):
        for row in range(rows):
            total = zero
            for k in range(width):
                total += x[row, k] * weight[j, k]
            result[row, j] = total


@compiled
def normalise(x: FloatArray, weight: FloatArray, epsilon: float, result: FloatArray) -> None:
    """The RMS norm of each row of x [rows, width]."""
    rows, width = x.shape
    for row in range(rows):
        source, target = x[row], result[row]
        total = np.float32(0.0)
        for i in range(width):
            total += source[i] * source[i]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(epsilon))
        for i in range(width):
            target[i] = source[i] * factor * weight[i]


@compiled
def normalise_and_rotate(
    head: FloatArray, weight: FloatArray, epsilon: float, cos: FloatArray, sin: FloatArray
) -> None:
    """Normalises (RMS) and rotates one attention head [head_dim], in place. The numbers i and i + head_dim / 2 are
    rotated together. Their angle is entry i of `cos` and `sin` [head_dim / 2 or more].
    """
    width = head.shape[0]
    half = width // 2
    total = np.float32(0.0)
    for i in range(width):
        total += head[i] * head[i]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(epsilon))
    left, right, weight_left, weight_right = head[:half], head[half:], weight[:half], weight[half:]
    for i in range(half):
        a = left[i] * factor * weight_left[i]
        b = right[i] * factor * weight_right[i]
        left[i] = a * cos[i] - b * sin[i]
        right[i] = b * cos[i] + a * sin[i]


@compiled
def attend(
    query: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    places: NDArray[np.int32],
    scale: float,
    scores: FloatArray,
    result: FloatArray,
) -> None:
    """Attention of one row to the tokens whose keys and values are in the cache slots `places`.

    Args:
        query: [heads, head_dim]; query head h belongs to KV head h // (heads / KV heads). `result` has the same shape.
        keys, values: The KV cache, [all cache slots, KV heads, head_dim].
        places: int32 [tokens].
        scores: [tokens or more], scratch memory.
    """
    heads, width = query.shape
    shared = heads // keys.shape[1]
    tokens = len(places)
    # The loop handles four tokens at a time. So each number of the query or the result is used four times while it is
    # in a register.
    fours = tokens // 4 * 4
    zero = np.float32(0.0)
    factor = np.float32(scale)
    for head in range(heads):
        own = head // shared
        q, target = query[head], result[head]
        highest = np.float32(-3.0e38)
        for token in range(0, fours, 4):
            k0, k1 = keys[places[token], own], keys[places[token + 1], own]
            k2, k3 = keys[places[token + 2], own], keys[places[token + 3], own]
            s0 = s1 = s2 = s3 = zero
            for i in range(width):
                a = q[i]
                s0 += a * k0[i]
                s1 += a * k1[i]
                s2 += a * k2[i]
                s3 += a * k3[i]
            s0, s1, s2, s3 = s0 * factor, s1 * factor, s2 * factor, s3 * factor
            scores[token], scores[token + 1], scores[token + 2], scores[token + 3] = s0, s1, s2, s3
            highest = max(highest, max(max(s0, s1), max(s2, s3)))
        for token in range(fours, tokens):
            k0 = keys[places[token], own]
            s0 = zero
            for i in range(width):
                s0 += q[i] * k0[i]
            scores[token] = s0 * factor
            highest = max(highest, scores[token])
        total = zero
        for token in range(tokens):
            score = exponential(scores[token] - highest)
            scores[token] = score
            total += score
        share = np.float32(1.0) / total
        target[:] = zero
        for token in range(0, fours, 4):
            v0, v1 = values[places[token], own], values[places[token + 1], own]
            v2, v3 = values[places[token + 2], own], values[places[token + 3], own]
            s0, s1 = scores[token] * share, scores[token + 1] * share
            s2, s3 = scores[token + 2] * share, scores[token + 3] * share
            for i in range(width):
                target[i] += s0 * v0[i] + s1 * v1[i] + s2 * v2[i] + s3 * v3[i]
        for token in range(fours, tokens):
            v0, s0 = values[places[token], own], scores[token] * share
            for i in range(width):
                target[i] += s0 * v0[i]


@compiled
def gate(gate_up: FloatArray, result: FloatArray) -> None:
    """For each row, silu(left half) · right half: from gate_up [rows, 2 · width] to result [rows, width]."""
    rows, width = result.shape
    for row in range(rows):
        left, right, target = gate_up[row, :width], gate_up[row, width:], result[row]
        for i in range(width):
            target[i] = left[i] * sigmoid(left[i]) * right[i]


@compiled
def route(logits: FloatArray, chosen: IntArray, weights: FloatArray, renormalise: bool) -> None:
    """Chooses the experts of each row: those with the highest logits. Their weights come from a softmax over all
    experts. The width of `chosen` is the number of experts for each row.

    Args:
        logits: [rows, experts]; it is overwritten.
        chosen, weights: [rows, experts per row], the results. If `renormalise` is true, the weights of a row add up to
            1.
    """
    rows, experts = logits.shape
    for row in range(rows):
        own = logits[row]
        highest = own[0]
        for expert in range(1, experts):
            highest = max(highest, own[expert])
        total = np.float32(0.0)
        for expert in range(experts):
            own[expert] = exponential(own[expert] - highest)
            total += own[expert]
        kept = np.float32(0.0)
        for rank in range(chosen.shape[1]):
            best = 0
            for expert in range(1, experts):
                if own[expert] > own[best]:
                    best = expert
            chosen[row, rank] = best
            weights[row, rank] = own[best]
            kept += own[best]
            own[best] = np.float32(-1.0)
        for rank in range(chosen.shape[1]):
            weights[row, rank] /= kept if renormalise else total


@compiled
def add_experts(
    x: FloatArray,
    chosen: IntArray,
    weights: FloatArray,
    gate_up: FloatArray,
    down: FloatArray,
    result: FloatArray,
) -> None:
    """Add the outputs of each row's experts, multiplied by their weights, to result [rows, hidden]. All rows of the
    same expert are computed together.

    Args:
        x: [rows, hidden].
        chosen, weights: As in `route`.
        gate_up: [experts, 2 · width, hidden].
        down: [experts, hidden, width].
    """
    rows, hidden = x.shape
    experts, double, _ = gate_up.shape
    ranks = chosen.shape[1]
    own_rows = np.empty((rows, hidden), np.float32)
    inner = np.empty((rows, double), np.float32)
    gated = np.empty((rows, double // 2), np.float32)
    outer = np.empty((rows, hidden), np.float32)
    members = np.empty(rows, np.int64)
    shares = np.empty(rows, np.float32)
    for expert in range(experts):
        count = 0
        for row in range(rows):
            for rank in range(ranks):
                if chosen[row, rank] == expert:
                    members[count] = row
                    shares[count] = weights[row, rank]
                    own_rows[count] = x[row]
                    count += 1
        if not count:
            continue
        project(own_rows[:count], gate_up[expert], inner[:count])
        gate(inner[:count], gated[:count])
        project(gated[:count], down[expert], outer[:count])
        for index in range(count):
            target, source, share = result[members[index]], outer[index], shares[index]
            for i in range(hidden):
                target[i] += share * source[i]
