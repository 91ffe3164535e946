"""The sizes in a checkpoint's ``config.json``, for code that needs them without loading the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from omni_pipeline.errors import StartupError


class DecoderConfig(Struct, frozen=True, kw_only=True):
    """The sizes of a causal transformer. If the transformer has experts, `moe_intermediate_size` is the width of each
    expert.

    The number of experts has two names: one in the files on the hub, and another in talker configs that transformers 5
    has written.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int = 0
    head_dim: int | None = None
    num_experts: int = 0
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    max_position_embeddings: int = 32768

    @property
    def experts(self) -> int:
        return self.num_experts or self.num_local_experts

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.head_width

    @property
    def key_width(self) -> int:
        return self.num_key_value_heads * self.head_width


class AudioConfig(Struct, frozen=True, kw_only=True):
    """The sizes of the audio tower."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    output_dim: int
    num_mel_bins: int = 128
    downsample_hidden_size: int = 480
    n_window: int = 50
    conv_chunksize: int = 500


class VisionConfig(Struct, frozen=True, kw_only=True):
    """The sizes of the vision tower."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2

    @property
    def patch_elements(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_width(self) -> int:
        """Width of the patches that are merged into one row."""
        return self.hidden_size * self.spatial_merge_size**2


class ThinkerConfig(Struct, frozen=True, kw_only=True):
    """The sizes of the thinker with its towers."""

    audio_config: AudioConfig
    vision_config: VisionConfig
    text_config: DecoderConfig


class TalkerConfig(Struct, frozen=True, kw_only=True):
    """The sizes of the talker with its code predictor."""

    text_config: DecoderConfig
    code_predictor_config: DecoderConfig
    thinker_hidden_size: int
    num_code_groups: int = 16


class VocoderConfig(DecoderConfig, frozen=True, kw_only=True):
    """The sizes of code2wav: a transformer, then convolutions that turn each frame into `samples_per_frame` samples."""

    codebook_size: int
    num_quantizers: int
    sliding_window: int
    decoder_dim: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]


class ModelConfig(Struct, frozen=True, kw_only=True):
    """The sizes of a complete Qwen3-Omni model. `talker_config` and `code2wav_config` are None if the model only writes
    text.

    `dtype` is torch's name for the type that most weights are stored in.
    """

    thinker_config: ThinkerConfig
    talker_config: TalkerConfig | None = None
    code2wav_config: VocoderConfig | None = None
    enable_audio_output: bool = True
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] = field(default_factory=dict)

    @property
    def stored_dtype(self) -> str:
        return self.dtype or self.torch_dtype or "bfloat16"


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The sizes in a parsed ``config.json``.

    Raises:
        StartupError: A size is missing or not a number.
    """
    try:
        return msgspec.convert(config, ModelConfig)
    except msgspec.ValidationError as error:
        raise StartupError(f"config.json does not describe a Qwen3-Omni model: {error}.") from error
