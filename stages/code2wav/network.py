"""Decodes frames to sound in chunks, and each frame only once. The sound equals the sound that the reference decodes
from the whole utterance.

Every layer is causal except the transposed convolutions of the decoder blocks: their output for a step depends on the
next step too. So the sound of a chunk stops a little before the end of the chunk. At the end of the utterance, the
reference trims this missing part too. So T frames give `upsample` · T − `trimmed` samples, however the frames are
divided into chunks.
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

from stages.code2wav.history import History, Streams
from stages.code2wav.transformer import SlidingTransformer


class StreamingVocoder:
    """Decodes chunks of up to `slots` utterances.

    Args:
        model: The reference's vocoder; its weights are taken over.
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
        """Decode the next frames of each utterance to the samples that are now complete.

        Args:
            codes: int64 [batch, frames, codebooks].
            streams: The utterances that the frames belong to.

        Returns:
            float32 [batch, samples] in [-1, 1]: `upsample` · frames samples, less `trimmed` in the first chunk.
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
        # On a CPU torch is slow at dilated convolutions of short inputs, so `_product` computes them.
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
    """An upsampling convolution. If the outputs of neighbouring steps overlap, the layer keeps the last step, and its
    output is one step late.
    """

    def __init__(self, layer: Any, slots: int) -> None:
        self._conv = layer.conv
        self._trim: int = layer.left_pad
        self._history: History | None = None
        if self._trim:
            stride, kernel = self._conv.stride[0], self._conv.kernel_size[0]
            if kernel != 2 * stride:
                raise ValueError(f"a transposed convolution of kernel {kernel} and stride {stride} cannot be streamed")
            kept = self._conv.weight.new_zeros(slots, self._conv.in_channels, 1)
            self._history = History(kept, silence=False)

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        if self._history is None:
            return self._conv(x)
        x = self._conv(self._history.extend(x, streams))
        return x[..., self._trim : -self._trim]


class ConvNeXt:
    """A ConvNeXt block over a causal depthwise convolution."""

    def __init__(self, layer: Any, slots: int) -> None:
        self._layer = layer
        self._conv = Convolution(layer.dwconv, slots)

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        layer = self._layer
        h = layer.norm(self._conv(x, streams).transpose(1, 2))
        h = layer.pwconv2(layer.act(layer.pwconv1(h)))
        return torch.addcmul(x, h.transpose(1, 2), layer.gamma[:, None])


class Snake:
    """x + sin²(αx) / β; the checkpoint stores the logarithms of α and β."""

    def __init__(self, layer: Any) -> None:
        self._alpha = layer.alpha.exp()[:, None]
        self._scale = (layer.beta.exp() + layer.no_div_by_zero).reciprocal()[:, None]

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        return torch.addcmul(x, (x * self._alpha).sin_().square_(), self._scale)


class ResidualUnit:
    """Two convolutions, each after a Snake, with a residual connection around them."""

    def __init__(self, layer: Any, slots: int) -> None:
        self._layers = [_streaming(part, slots) for part in (layer.act1, layer.conv1, layer.act2, layer.conv2)]

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        h = x
        for layer in self._layers:
            h = layer(h, streams)
        return h.add_(x)


class Block:
    """A sequence of layers."""

    def __init__(self, layers: Any, slots: int) -> None:
        self._layers = [_streaming(layer, slots) for layer in layers]

    def __call__(self, x: Tensor, streams: Streams) -> Tensor:
        for layer in self._layers:
            x = layer(x, streams)
        return x


def _streaming(layer: Any, slots: int) -> Any:
    """The streaming form of one of the reference's layers."""
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
            return ResidualUnit(layer, slots)
        case Qwen3OmniMoeCode2WavDecoderBlock():
            return Block(layer.block, slots)
        case _:
            raise TypeError(f"no streaming form of a {type(layer).__name__}")
