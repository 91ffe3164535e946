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

    The number of experts is in `num_experts` or in `num_local_experts`. Files on the Hugging Face hub use
    `num_experts`. If version 5 of `transformers` has written a talker config, the config uses `num_local_experts`.
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
    """The sizes of the talker with its code predictor, and the ids of its voices."""

    text_config: DecoderConfig
    code_predictor_config: DecoderConfig
    thinker_hidden_size: int
    num_code_groups: int = 16
    speaker_id: dict[str, int] | None = None


class VocoderConfig(DecoderConfig, frozen=True, kw_only=True):
    """The sizes of code2wav. It consists of a transformer, and of convolutions after the transformer. The convolutions
    turn each frame into samples. The number of samples per frame is the product of all `upsample_rates` and
    `upsampling_ratios`.
    """

    codebook_size: int
    num_quantizers: int
    sliding_window: int
    decoder_dim: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]


class ModelConfig(Struct, frozen=True, kw_only=True):
    """The sizes of a complete Qwen3-Omni model. `talker_config` and `code2wav_config` are None if the model only writes
    text.

    `dtype` is torch's name for the data type in which most weights are stored.
    """

    thinker_config: ThinkerConfig
    talker_config: TalkerConfig | None = None
    code2wav_config: VocoderConfig | None = None
    enable_audio_output: bool = True
    dtype: str | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] = field(default_factory=dict)

    @property
    def speaks(self) -> bool:
        """Whether the model has a talker."""
        return self.enable_audio_output and self.talker_config is not None

    @property
    def stored_dtype(self) -> str:
        return self.dtype or self.torch_dtype or "bfloat16"


def without_speech(config: Mapping[str, Any]) -> str | None:
    """The reason why the model of a parsed ``config.json`` only writes text; None if the model speaks.

    Raises:
        StartupError: The config says that the model speaks, but describes only a part of the speech modules.
    """
    model = read(config)
    if not model.enable_audio_output:
        return "its config.json says enable_audio_output: false"
    if model.talker_config is None and model.code2wav_config is None:
        return "its config.json has neither talker_config nor code2wav_config"
    missing = [
        name
        for name, part in (
            ("talker_config", model.talker_config),
            ("code2wav_config", model.code2wav_config),
            ("talker_config.speaker_id", model.talker_config is None or model.talker_config.speaker_id),
        )
        if not part
    ]
    if missing:
        raise StartupError(
            f"config.json says that the model speaks, but config.json has no {' and no '.join(missing)}. Complete "
            "config.json or, to serve text only, pass --text-only."
        )
    return None


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The sizes in a parsed ``config.json``.

    Raises:
        StartupError: A size is missing or not a number.
    """
    try:
        return msgspec.convert(config, ModelConfig)
    except msgspec.ValidationError as error:
        raise StartupError(f"config.json does not describe a Qwen3-Omni model: {error}.") from error
