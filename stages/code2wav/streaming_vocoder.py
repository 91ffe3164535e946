"""Decodes frames to sound chunk by chunk. Each frame is decoded once, and the sound equals the reference's sound for
the whole utterance.

Every layer is causal except the transposed convolutions of the decoder blocks. Their output for a step depends on the
next step too. So the last samples of a chunk can be computed only with the next chunk. At the end of an utterance,
these samples are left out, as in the reference. As a result, T frames always give `upsample` · T − `trimmed` samples.
The division into chunks does not change this number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeCausalConvNet,
    Qwen3OmniMoeCausalTransConvNet,
    Qwen3OmniMoeCode2WavDecoderBlock,
    Qwen3OmniMoeCode2WavDecoderResidualUnit,
    Qwen3OmniMoeConvNeXtBlock,
    Qwen3OmniMoeSnakeBeta,
)

from stages.code2wav import cpu_units
from stages.code2wav.history import History, Streams
from stages.code2wav.transformer import SlidingTransformer


class StreamingVocoder:
    """Decodes the chunks of several utterances.

    Args:
        model: The reference's vocoder. This object takes over its weights.
        slots: Number of utterances whose state is kept.

    Attributes:
        codebooks: Number of codes in a frame.
        codes: Number of different codes in one codebook.
        upsample: Number of samples for each frame.
        trimmed: Number of samples that are trimmed at the end of an utterance.
    """

    def __init__(self, model: Any, slots: int) -> None:
        config = model.config
        self.codebooks: int = config.num_quantizers
        self.codes: int = config.codebook_size
        self.upsample = int(model.total_upsample)
        self.trimmed = 0
        for rate in config.upsample_rates:
            self.trimmed = (self.trimmed + 1) * rate
        self.slots = slots
        self.device = model.code_embedding.weight.device
        self._embedding = model.code_embedding.weight
        self._offsets = model.code_offset.view(1, 1, -1)
        self._transformer = SlidingTransformer(model.pre_transformer, slots)
        self._layers = [_streaming(layer, slots) for pair in model.upsample for layer in pair]
        self._layers += [_streaming(layer, slots) for layer in model.decoder]

    def decode(self, codes: Tensor, streams: Streams) -> Tensor:
        """Decode the next frames of each utterance, and return the samples that can now be computed.

        Args:
            codes: int64 [batch, frames, codebooks].
            streams: The utterances that the frames belong to.

        Returns:
            float32 [batch, samples] in [-1, 1]. Each frame gives `upsample` samples. The first chunk has `trimmed`
            samples fewer.
        """
        x = functional.embedding(codes + self._offsets, self._embedding).mean(2)
        x = self._transformer(x, streams).transpose(1, 2)
        for layer in self._layers:
            x = layer(x, streams)
        return x[:, 0].float().clamp_(-1.0, 1.0)


class Convolution:
    """A causal convolution that keeps the end of its input for the next chunk."""

    def __init__(self, layer: Any, slots: int) -> None:
        self._conv = layer.conv
        weight = self._conv.weight
        length = layer.padding
        kept = weight.new_zeros(slots, self._conv.in_channels, length)
        self._history = History(kept, silence=True) if length else None
        # On a CPU, torch's dilated convolutions are slow for short inputs, so `_product` computes them.
        dilated = self._conv.dilation[0] > 1 and self._conv.groups == 1 and weight.device.type == "cpu"
        self._joined = weight.flatten(1) if dilated else None

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        x = x if self._history is None else self._history.extend(x, streams)
        return self._conv(x) if self._joined is None or len(x) > 1 else self._product(x, self._joined)

    def _product(self, x: Tensor, joined: Tensor) -> Tensor:
        """The convolution of x [1, channels, steps] as one product with weights [channels out, channels · kernel]."""
        [kernel], [dilation] = self._conv.kernel_size, self._conv.dilation
        _, channels, steps = x.shape
        length = steps - (kernel - 1) * dilation
        taps = x.as_strided((channels, kernel, length), (steps, dilation, 1)).reshape(-1, length)
        return torch.addmm(self._conv.bias[:, None], joined, taps)[None]


class TransposedConvolution:
    """An upsampling convolution. If the outputs of neighbouring steps overlap, the output of a step needs the next
    step. So the layer keeps the last step of each chunk, and its output is one step late.
    """

    def __init__(self, layer: Any, slots: int) -> None:
        self._conv = layer.conv
        self._trim: int = layer.left_pad
        self._history: History | None = None
        if self._trim:
            stride, kernel = self._conv.stride[0], self._conv.kernel_size[0]
            if kernel != 2 * stride:
                raise ValueError(
                    f"a transposed convolution with kernel size {kernel} and stride {stride} cannot be streamed"
                )
            kept = self._conv.weight.new_zeros(slots, self._conv.in_channels, 1)
            self._history = History(kept, silence=False)

        # On a CPU, torch's transposed convolutions are slow, so `_product` computes them.
        weight = self._conv.weight
        self._joined = weight.flatten(1).t().contiguous() if cpu_units.can_compute(weight) else None

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        if self._history is None:
            return self._conv(x)
        x = self._history.extend(x, streams)
        if self._joined is not None:
            return self._product(x, self._joined)
        return self._conv(x)[..., self._trim : -self._trim]

    def _product(self, x: Tensor, joined: Tensor) -> Tensor:
        """The convolution of x [batch, channels in, steps] as one product with weights [channels out · kernel, channels
        in]. The kernel is twice as long as the stride, so an output is the sum of two products.
        """
        batch, _, steps = x.shape
        parts = torch.matmul(joined, x).view(batch, self._conv.out_channels, 2, self._trim, steps)
        total = parts[:, :, 0, :, 1:] + parts[:, :, 1, :, :-1]
        return total.add_(self._conv.bias[:, None, None]).transpose(2, 3).flatten(2)


class ConvNeXt:
    """A ConvNeXt block. Its convolution is depthwise and causal."""

    def __init__(self, layer: Any, slots: int) -> None:
        self._layer = layer
        self._conv = Convolution(layer.dwconv, slots)

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        layer = self._layer
        h = layer.norm(self._conv(x, streams).transpose(1, 2))
        h = layer.pwconv2(layer.act(layer.pwconv1(h)))
        return torch.addcmul(x, h.transpose(1, 2), layer.gamma[:, None])


class Snake:
    """x + sin²(αx) / β; the checkpoint stores the logarithms of α and β.

    Attributes:
        alpha, scale: α and 1 / β, [channels, 1].
    """

    def __init__(self, layer: Any) -> None:
        self.alpha = layer.alpha.exp()[:, None]
        self.scale = (layer.beta.exp() + layer.no_div_by_zero).reciprocal()[:, None]
        self._compiled = cpu_units.can_compute(self.alpha)

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        if self._compiled:
            return cpu_units.activate(x.contiguous(), self.alpha, self.scale)
        return torch.addcmul(x, (x * self.alpha).sin_().square_(), self.scale)


class ResidualUnit:
    """Two convolutions, each after a Snake, with a residual connection around them."""

    def __init__(self, layer: Any, slots: int) -> None:
        self._layers = [_streaming(part, slots) for part in (layer.act1, layer.conv1, layer.act2, layer.conv2)]

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        h = x
        for layer in self._layers:
            h = layer(h, streams)
        return h.add_(x)


class CompiledResidualUnit:
    """A `ResidualUnit` on a CPU, computed by the compiled code of `cpu_units`."""

    def __init__(self, layer: Any, slots: int) -> None:
        first, second = Snake(layer.act1), Snake(layer.act2)
        conv = layer.conv1.conv
        self._first = cpu_units.ActivatedConvolution.of(first.alpha, first.scale, conv)
        self._second = cpu_units.ActivatedConvolution.of(second.alpha, second.scale, layer.conv2.conv)
        [self._dilation] = conv.dilation
        self._kept = conv.weight.new_zeros(slots, conv.in_channels, layer.conv1.padding)

    @classmethod
    def suits(cls, layer: Any) -> bool:
        """Whether the unit runs on a CPU, and has a shape that the compiled code supports."""
        conv, pointwise = layer.conv1.conv, layer.conv2.conv
        shape = conv.kernel_size, conv.stride, conv.groups, pointwise.kernel_size
        return (
            cpu_units.can_compute(conv.weight)
            and shape == ((cpu_units.TAPS,), (1,), 1, (1,))
            and conv.in_channels % 4 == 0
            and conv.in_channels <= cpu_units.MOST_CHANNELS
        )

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        histories = [self._kept[slot] for slot in streams.slots]
        if streams.fresh:
            for history in histories:
                history.zero_()
        return cpu_units.residual_unit(x.contiguous(), self._first, self._dilation, histories, self._second)


class Block:
    """A sequence of layers."""

    def __init__(self, layers: Any, slots: int) -> None:
        self._layers = [_streaming(layer, slots) for layer in layers]

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        for layer in self._layers:
            x = layer(x, streams)
        return x


def _streaming(layer: Any, slots: int) -> Any:
    """Makes a layer that gets its input chunk by chunk. Over all chunks, it computes the same output as the reference's
    `layer`.
    """
    match layer:
        case Qwen3OmniMoeCausalConvNet():
            return Convolution(layer, slots)
        case Qwen3OmniMoeCausalTransConvNet():
            return TransposedConvolution(layer, slots)
        case Qwen3OmniMoeConvNeXtBlock():
            return ConvNeXt(layer, slots)
        case Qwen3OmniMoeSnakeBeta():
            return Snake(layer)
        case Qwen3OmniMoeCode2WavDecoderResidualUnit():
            return (
                CompiledResidualUnit(layer, slots) if CompiledResidualUnit.suits(layer) else ResidualUnit(layer, slots)
            )
        case Qwen3OmniMoeCode2WavDecoderBlock():
            return Block(layer.block, slots)
        case _:
            raise TypeError(f"a layer of the type {type(layer).__name__} cannot be streamed")
