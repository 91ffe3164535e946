"""Derives the tensors in a checkpoint (names as on disk, shapes, sizes) from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from omni_pipeline.wire.tensor import ITEM_SIZE
from stages.checkpoint import quantised_tensors, quantization
from stages.checkpoint.model_config import (
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    TalkerConfig,
    VisionConfig,
    VocoderConfig,
    read,
)

Shapes = Iterator[tuple[str, tuple[int, ...]]]

DILATIONS = (1, 3, 9)
"""Dilations of the residual units in each block of the vocoder's decoder."""

KERNEL = 7
"""Kernel size of the dilated convolutions, and of the first and last convolution of the vocoder's decoder."""

_EXPANSION = 4


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by name, for a parsed ``config.json``. Raises StartupError if a size is missing."""
    return dict(_model(read(config)))


def stored_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, int, bool]]:
    """Maps the name of each tensor to its number of elements, its number of bytes, and whether it keeps its type when
    it is loaded.

    Raises:
        StartupError: A size is missing, or the weights are quantised in an unknown way.
    """
    model = read(config)
    item = ITEM_SIZE[model.stored_dtype.removeprefix("torch.")]
    quantised = [found for part in quantization.PARTS if (found := quantization.read(config, part)) is not None]
    stored: dict[str, tuple[int, int, bool]] = {}
    for name, shape in _model(model):
        module = name.removesuffix(".weight")
        own = next((one for one in quantised if one.covers(module)), None) if module != name else None
        if own is None:
            stored[name] = math.prod(shape), math.prod(shape) * item, False
        else:
            stored |= quantised_tensors.sizes(own, module, shape, item)
    return stored


def fp8_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, int, bool]]:
    """The result of `stored_tensors` for the checkpoint that `fp8_config` describes."""
    return stored_tensors(fp8_config(config))


def fp8_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the same model with FP8 weights in blocks of the usual size."""
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return {**config, "quantization_config": method}


def _model(model: ModelConfig) -> Shapes:
    thinker = model.thinker_config
    yield from _under("thinker.audio_tower.", _audio(thinker.audio_config))
    yield from _under("thinker.visual.", _vision(thinker.vision_config))
    yield from _under("thinker.model.", _decoder(thinker.text_config, "embed_tokens"))
    yield "thinker.lm_head.weight", (thinker.text_config.vocab_size, thinker.text_config.hidden_size)
    if model.enable_audio_output and model.talker_config and model.code2wav_config:
        yield from _under("talker.", _talker(model.talker_config))
        yield from _under("code2wav.", _vocoder(model.code2wav_config))


def _under(prefix: str, shapes: Shapes) -> Shapes:
    for name, shape in shapes:
        yield prefix + name, shape


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _convolution(name: str, inputs: int, outputs: int, *kernel: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, *kernel)
    yield f"{name}.bias", (outputs,)


def _layer_norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _audio(audio: AudioConfig) -> Shapes:
    width, channels = audio.d_model, audio.downsample_hidden_size
    for number, inputs in ((1, 1), (2, channels), (3, channels)):
        yield from _convolution(f"conv2d{number}", inputs, channels, 3, 3)
    # Three convolutions of stride 2 reduce the mel bins to an eighth.
    yield "conv_out.weight", (width, channels * -(-audio.num_mel_bins // 8))
    for layer in range(audio.encoder_layers):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"layers.{layer}.self_attn.{projection}", width, width)
        yield from _linear(f"layers.{layer}.fc1", width, audio.encoder_ffn_dim)
        yield from _linear(f"layers.{layer}.fc2", audio.encoder_ffn_dim, width)
        yield from _layer_norm(f"layers.{layer}.self_attn_layer_norm", width)
        yield from _layer_norm(f"layers.{layer}.final_layer_norm", width)
    yield from _layer_norm("ln_post", width)
    yield from _linear("proj1", width, width)
    yield from _linear("proj2", width, audio.output_dim)


def _vision(vision: VisionConfig) -> Shapes:
    width, patch = vision.hidden_size, vision.patch_size
    yield from _convolution("patch_embed.proj", vision.in_channels, width, vision.temporal_patch_size, patch, patch)
    yield "pos_embed.weight", (vision.num_position_embeddings, width)
    for block in range(vision.depth):
        yield from _layer_norm(f"blocks.{block}.norm1", width)
        yield from _layer_norm(f"blocks.{block}.norm2", width)
        yield from _linear(f"blocks.{block}.attn.qkv", width, 3 * width)
        yield from _linear(f"blocks.{block}.attn.proj", width, width)
        yield from _linear(f"blocks.{block}.mlp.linear_fc1", width, vision.intermediate_size)
        yield from _linear(f"blocks.{block}.mlp.linear_fc2", vision.intermediate_size, width)
    mergers = {"merger": width}
    mergers |= {f"merger_list.{index}": vision.merged_width for index in range(len(vision.deepstack_visual_indexes))}
    for merger, normed in mergers.items():
        yield from _layer_norm(f"{merger}.ln_q", normed)
        yield from _linear(f"{merger}.mlp.0", vision.merged_width, vision.merged_width)
        yield from _linear(f"{merger}.mlp.2", vision.merged_width, vision.out_hidden_size)


def _decoder(decoder: DecoderConfig, embedding: str | None, *, head_norms: bool = True) -> Shapes:
    hidden = decoder.hidden_size
    if embedding:
        yield f"{embedding}.weight", (decoder.vocab_size, hidden)
    for layer in range(decoder.num_hidden_layers):
        prefix = f"layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        yield from _under(f"{prefix}self_attn.", _attention(decoder, head_norms))
        if not decoder.experts:
            yield from _under(f"{prefix}mlp.", _gated(hidden, decoder.intermediate_size))
            continue
        yield f"{prefix}mlp.gate.weight", (decoder.experts, hidden)
        for expert in range(decoder.experts):
            yield from _under(f"{prefix}mlp.experts.{expert}.", _gated(hidden, decoder.moe_intermediate_size))
        if decoder.shared_expert_intermediate_size:
            shared = _gated(hidden, decoder.shared_expert_intermediate_size)
            yield from _under(f"{prefix}mlp.shared_expert.", shared)
            yield f"{prefix}mlp.shared_expert_gate.weight", (1, hidden)
    yield "norm.weight", (hidden,)


def _attention(decoder: DecoderConfig, head_norms: bool) -> Shapes:
    hidden = decoder.hidden_size
    yield from _linear("q_proj", hidden, decoder.query_width, bias=False)
    yield from _linear("k_proj", hidden, decoder.key_width, bias=False)
    yield from _linear("v_proj", hidden, decoder.key_width, bias=False)
    yield from _linear("o_proj", decoder.query_width, hidden, bias=False)
    if head_norms:
        yield "q_norm.weight", (decoder.head_width,)
        yield "k_norm.weight", (decoder.head_width,)


def _gated(hidden: int, intermediate: int) -> Shapes:
    yield from _linear("gate_proj", hidden, intermediate, bias=False)
    yield from _linear("up_proj", hidden, intermediate, bias=False)
    yield from _linear("down_proj", intermediate, hidden, bias=False)


def _talker(talker: TalkerConfig) -> Shapes:
    text, predictor = talker.text_config, talker.code_predictor_config
    yield from _under("model.", _decoder(text, "codec_embedding"))
    yield "codec_head.weight", (text.vocab_size, text.hidden_size)
    for projection in ("text_projection", "hidden_projection"):
        yield from _linear(f"{projection}.linear_fc1", talker.thinker_hidden_size, text.intermediate_size)
        yield from _linear(f"{projection}.linear_fc2", text.intermediate_size, text.hidden_size)
    yield from _under("code_predictor.model.", _decoder(predictor, None))
    for group in range(talker.num_code_groups - 1):
        table = (predictor.vocab_size, predictor.hidden_size)
        yield f"code_predictor.model.codec_embedding.{group}.weight", table
        yield f"code_predictor.lm_head.{group}.weight", table


def _vocoder(vocoder: VocoderConfig) -> Shapes:
    hidden = vocoder.hidden_size
    yield "code_embedding.weight", (vocoder.codebook_size * vocoder.num_quantizers, hidden)
    yield from _under("pre_transformer.", _decoder(vocoder, None, head_norms=False))
    for layer in range(vocoder.num_hidden_layers):
        yield f"pre_transformer.layers.{layer}.self_attn_layer_scale.scale", (hidden,)
        yield f"pre_transformer.layers.{layer}.mlp_layer_scale.scale", (hidden,)
    for stage, ratio in enumerate(vocoder.upsampling_ratios):
        # A transposed convolution's weight is [in, out, kernel].
        yield from _convolution(f"upsample.{stage}.0.conv", hidden, hidden, ratio)
        yield from _under(f"upsample.{stage}.1.", _conv_next(hidden))
    yield from _convolution("decoder.0.conv", hidden, vocoder.decoder_dim, KERNEL)
    width = vocoder.decoder_dim
    for stage, rate in enumerate(vocoder.upsample_rates, 1):
        yield from _under(f"decoder.{stage}.block.", _upsampling(width, rate))
        width //= 2
    last = len(vocoder.upsample_rates) + 1
    yield from _snake(f"decoder.{last}", width)
    yield from _convolution(f"decoder.{last + 1}.conv", width, 1, KERNEL)


def _conv_next(width: int) -> Shapes:
    yield from _convolution("dwconv.conv", 1, width, KERNEL)
    yield from _layer_norm("norm", width)
    yield from _linear("pwconv1", width, _EXPANSION * width)
    yield from _linear("pwconv2", _EXPANSION * width, width)
    yield "gamma", (width,)


def _upsampling(width: int, rate: int) -> Shapes:
    half = width // 2
    yield from _snake("0", width)
    yield "1.conv.weight", (width, half, 2 * rate)
    yield "1.conv.bias", (half,)
    for unit in range(2, 2 + len(DILATIONS)):
        yield from _snake(f"{unit}.act1", half)
        yield from _convolution(f"{unit}.conv1.conv", half, half, KERNEL)
        yield from _snake(f"{unit}.act2", half)
        yield from _convolution(f"{unit}.conv2.conv", half, half, 1)


def _snake(name: str, width: int) -> Shapes:
    yield f"{name}.alpha", (width,)
    yield f"{name}.beta", (width,)
