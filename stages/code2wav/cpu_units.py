"""Computes the vocoder's residual units and activations on a CPU, in few passes over the samples.

In torch, a residual unit is about twenty operations. Each operation reads and writes all samples, and a dilated
convolution also copies every sample once for each tap. Here, a residual unit needs two passes. The first pass computes
the first activation. The second pass computes the rest of the unit piece by piece, so that a piece stays in the core's
cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from stages.compiled import FloatArray, compiled, inlined

TAPS = 7
"""Width of the kernel of a residual unit's first convolution. The compiled code supports only this width."""

# Number of samples in a piece. A piece with all its channels fits into the second-level cache.
_PIECE = 512

# Maximum number of channels. With more channels the weights do not fit into the cache, and oneDNN is faster.
MOST_CHANNELS = 128

_INVERSE_PI = np.float32(0.31830988618379067)
# π as a sum of two numbers, so that k · π is exact enough for the arguments that occur.
_PI_HIGH = np.float32(3.140625)
_PI_LOW = np.float32(9.676535897932e-4)


@inlined
def _snake(x: Any, alpha: Any, scale: Any) -> Any:
    """x + sin²(alpha · x) · scale. The sine is a polynomial of degree 9 in the distance to the nearest multiple of π,
    with an absolute error of 2e-7.
    """
    angle = x * alpha
    turns = np.floor(angle * _INVERSE_PI + np.float32(0.5))
    rest = angle - turns * _PI_HIGH - turns * _PI_LOW
    square = rest * rest
    series = np.float32(2.6083159809786593e-06)
    series = series * square + np.float32(-1.981069071916863e-4)
    series = series * square + np.float32(8.333078585565090e-3)
    series = series * square + np.float32(-1.666665971279144e-1)
    sine = rest + rest * square * series
    return x + sine * sine * scale


@compiled
def _activate(x: FloatArray, alpha: FloatArray, scale: FloatArray, result: FloatArray) -> None:
    """Snake of x [channels, steps]."""
    for channel in range(x.shape[0]):
        row, target, a, s = x[channel], result[channel], alpha[channel], scale[channel]
        for step in range(x.shape[1]):
            target[step] = _snake(row[step], a, s)


@compiled
def _residual_unit(
    x: FloatArray,
    first: ActivatedConvolution,
    dilation: int,
    history: FloatArray,
    second: ActivatedConvolution,
    padded: FloatArray,
    middle: FloatArray,
    result: FloatArray,
) -> None:
    """x + conv1x1(snake(conv(snake(x)))) for one utterance.

    Args:
        x: [channels, steps]; the number of channels is a multiple of 4. `result` has the same shape.
        first, second: The arrays of the first and of the second convolution. There are four arrays for each: alpha and
            scale [channels] of the activation before the convolution, the convolution's weight ([channels, channels, 7]
            or [channels, channels]), and its bias.
        history: [channels, 6 · dilation], the activated samples before x. The function replaces them by the last
            activated samples of this call.
        padded: [channels, 6 · dilation + steps], scratch memory.
        middle: [channels, `_PIECE`], scratch memory.
    """
    channels, steps = x.shape
    alpha1, scale1, weight1, bias1 = first
    alpha2, scale2, weight2, bias2 = second
    before = history.shape[1]
    for channel in range(channels):
        row, target, a, s = x[channel], padded[channel, before:], alpha1[channel], scale1[channel]
        padded[channel, :before] = history[channel]
        for step in range(steps):
            target[step] = _snake(row[step], a, s)
        history[channel] = padded[channel, steps:]
    for start in range(0, steps, _PIECE):
        count = min(_PIECE, steps - start)
        # Two output channels are computed at a time, so that their weights stay in registers while the taps of one
        # input channel are read.
        for channel in range(0, channels, 2):
            left, right = middle[channel, :count], middle[channel + 1, :count]
            left[:] = bias1[channel]
            right[:] = bias1[channel + 1]
            for source in range(channels):
                v, w = weight1[channel, source], weight1[channel + 1, source]
                v0, v1, v2, v3, v4, v5, v6 = v[0], v[1], v[2], v[3], v[4], v[5], v[6]
                w0, w1, w2, w3, w4, w5, w6 = w[0], w[1], w[2], w[3], w[4], w[5], w[6]
                # The code uses slices, because the compiler does not vectorise a loop over computed indices.
                row = padded[source, start : start + before + count]
                x0 = row[:count]
                x1 = row[dilation : dilation + count]
                x2 = row[2 * dilation : 2 * dilation + count]
                x3 = row[3 * dilation : 3 * dilation + count]
                x4 = row[4 * dilation : 4 * dilation + count]
                x5 = row[5 * dilation : 5 * dilation + count]
                x6 = row[6 * dilation : 6 * dilation + count]
                for i in range(count):
                    a0, a1, a2, a3, a4, a5, a6 = x0[i], x1[i], x2[i], x3[i], x4[i], x5[i], x6[i]
                    left[i] += v0 * a0 + v1 * a1 + v2 * a2 + v3 * a3 + v4 * a4 + v5 * a5 + v6 * a6
                    right[i] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3 + w4 * a4 + w5 * a5 + w6 * a6
            for own in (channel, channel + 1):
                row, a, s = middle[own, :count], alpha2[own], scale2[own]
                for i in range(count):
                    row[i] = _snake(row[i], a, s)
        for channel in range(0, channels, 2):
            left, right = result[channel, start : start + count], result[channel + 1, start : start + count]
            left[:] = x[channel, start : start + count]
            right[:] = x[channel + 1, start : start + count]
            left += bias2[channel]
            right += bias2[channel + 1]
            for source in range(0, channels, 4):
                v, w = weight2[channel, source:], weight2[channel + 1, source:]
                v0, v1, v2, v3 = v[0], v[1], v[2], v[3]
                w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
                x0, x1 = middle[source, :count], middle[source + 1, :count]
                x2, x3 = middle[source + 2, :count], middle[source + 3, :count]
                for i in range(count):
                    a0, a1, a2, a3 = x0[i], x1[i], x2[i], x3[i]
                    left[i] += v0 * a0 + v1 * a1 + v2 * a2 + v3 * a3
                    right[i] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3


def can_compute(weight: Tensor) -> bool:
    """Whether this module can compute a layer with this weight."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not isinstance(weight, FakeTensor)


def activate(x: Tensor, alpha: Tensor, scale: Tensor) -> Tensor:
    """Snake of x, contiguous float32 [batch, channels, steps]; `alpha` and `scale` are [channels, 1]."""
    result = torch.empty_like(x)
    for row, target in zip(x.numpy(), result.numpy(), strict=True):
        _activate(row, alpha[:, 0].numpy(), scale[:, 0].numpy(), target)
    return result


class ActivatedConvolution(NamedTuple):
    """A Snake and the convolution after it: alpha and scale [channels], weight [channels, channels, …], bias."""

    alpha: FloatArray
    scale: FloatArray
    weight: FloatArray
    bias: FloatArray

    @classmethod
    def of(cls, alpha: Tensor, scale: Tensor, conv: Any) -> ActivatedConvolution:
        weight = conv.weight.squeeze(-1) if conv.kernel_size == (1,) else conv.weight
        parts = alpha.flatten(), scale.flatten(), weight, conv.bias
        return cls(*(part.detach().contiguous().numpy() for part in parts))


def residual_unit(
    x: Tensor, first: ActivatedConvolution, dilation: int, histories: list[Tensor], second: ActivatedConvolution
) -> Tensor:
    """A residual unit, for a batch of utterances.

    Args:
        x: Contiguous float32 [batch, channels, steps]. The result has the same shape.
        histories: The history of each utterance, [channels, 6 · dilation]. The function updates these histories.
    """
    _, channels, steps = x.shape
    result = torch.empty_like(x)
    padded = np.empty((channels, (TAPS - 1) * dilation + steps), np.float32)
    middle = np.empty((channels, _PIECE), np.float32)
    for row, history, target in zip(x.numpy(), histories, result.numpy(), strict=True):
        _residual_unit(row, first, dilation, history.numpy(), second, padded, middle, target)
    return result
