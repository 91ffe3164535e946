"""Builds the JSON files of a checkpoint, with the keys and nesting of the hub's Qwen3-Omni-30B-A3B-Instruct."""

from typing import Any

from .shapes import Decoder, Shapes, Tower
from .tokenizer import Vocabulary

Json = dict[str, Any]

# The offset of each control id from the end of the codec entries, as in the real model. The real codec has 2048
# entries, and its pad id is 2148.
_CODEC_CONTROL = {
    "codec_pad_id": 100,
    "codec_bos_id": 101,
    "codec_eos_token_id": 102,
    "codec_nothink_id": 107,
    "codec_think_bos_id": 108,
    "codec_think_eos_id": 109,
}
_SPEAKERS = {"chelsie": 253, "ethan": 254, "aiden": 255}
# Generation suppresses the talker's last 1024 ids, for any size of the vocabulary. So exactly 1024 ids must follow the
# codec entries.
_CODEC_CONTROL_IDS = 1024

_POSITIONS_PER_SECOND = 13
_ROW_MULTIPLE = 64


def model_config(shapes: Shapes, vocabulary: Vocabulary, dtype: str, *, speaks: bool = True) -> Json:
    """The content of config.json.

    Args:
        dtype: A torch name such as "float32".
        speaks: Whether the model has a talker and a vocoder.
    """
    config = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "dtype": dtype,
        # the first version with this model; this module spells the keys as that version does
        "transformers_version": "4.57.0",
        "enable_audio_output": speaks,
        "im_start_token_id": vocabulary.id("<|im_start|>"),
        "im_end_token_id": vocabulary.id("<|im_end|>"),
        "tts_pad_token_id": vocabulary.id("<tts_pad>"),
        "tts_bos_token_id": vocabulary.id("<tts_text_bos>"),
        "tts_eos_token_id": vocabulary.id("<tts_text_eod>"),
        "system_token_id": vocabulary.id("system"),
        "user_token_id": vocabulary.id("user"),
        "assistant_token_id": vocabulary.id("assistant"),
        "thinker_config": _thinker(shapes, vocabulary),
    }
    if speaks:
        config |= {"talker_config": _talker(shapes, vocabulary), "code2wav_config": _code2wav(shapes)}
    return config


def generation_config(vocabulary: Vocabulary) -> Json:
    """The content of generation_config.json. It has only the end token and the padding token, so that the server's
    defaults apply to all other settings.
    """
    return {"eos_token_id": [vocabulary.id("<|im_end|>")], "pad_token_id": vocabulary.id("<|endoftext|>")}


def preprocessor_config() -> Json:
    """The content of preprocessor_config.json, which is the same as on the hub. The image, video and audio processors
    read this file.
    """
    return {
        "processor_class": "Qwen3OmniMoeProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "sampling_rate": 16000,
        "feature_size": 128,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 300,
        "n_samples": 4800000,
        "nb_max_frames": 30000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "dither": 0.0,
    }


def _thinker(shapes: Shapes, vocabulary: Vocabulary) -> Json:
    return {
        "model_type": "qwen3_omni_moe_thinker",
        **_media_tokens(vocabulary),
        "vision_end_token_id": vocabulary.id("<|vision_end|>"),
        "user_token_id": vocabulary.id("user"),
        "audio_config": _audio(shapes),
        "vision_config": _vision(shapes),
        "text_config": {
            "model_type": "qwen3_omni_moe_text",
            **_decoder(shapes.thinker, rope_theta=1_000_000),
            **_mrope(shapes.thinker.head_dim),
            # The size is rounded up, as in the real model. So tests show whether a server handles rows without a token.
            "vocab_size": -(-len(vocabulary) // _ROW_MULTIPLE) * _ROW_MULTIPLE,
        },
    }


def _talker(shapes: Shapes, vocabulary: Vocabulary) -> Json:
    return {
        "model_type": "qwen3_omni_moe_talker",
        **_media_tokens(vocabulary),
        **{name: shapes.codebook + offset for name, offset in _CODEC_CONTROL.items()},
        "speaker_id": {name: shapes.codebook + offset for name, offset in _SPEAKERS.items()},
        "accept_hidden_layer": shapes.accept_hidden_layer,
        "num_code_groups": shapes.code_groups,
        "spatial_merge_size": 2,
        "thinker_hidden_size": shapes.thinker.hidden,
        "text_config": {
            "model_type": "qwen3_omni_moe_talker_text",
            **_decoder(shapes.talker, rope_theta=1_000_000),
            **_mrope(shapes.talker.head_dim),
            "intermediate_size": shapes.talker_projection,
            "shared_expert_intermediate_size": shapes.shared_expert,
            "vocab_size": shapes.codebook + _CODEC_CONTROL_IDS,
        },
        "code_predictor_config": {
            "model_type": "qwen3_omni_moe_talker_code_predictor",
            **_decoder(shapes.code_predictor, rope_theta=1_000_000),
            "num_code_groups": shapes.code_groups,
            "vocab_size": shapes.codebook,
        },
    }


def _code2wav(shapes: Shapes) -> Json:
    return {
        "model_type": "qwen3_omni_moe_code2wav",
        **_decoder(shapes.code2wav, rope_theta=10_000),
        "max_position_embeddings": 8000,
        "rms_norm_eps": 1e-5,
        "layer_scale_initial_scale": 0.01,
        "sliding_window": shapes.code2wav_window,
        "num_quantizers": shapes.code_groups,
        "codebook_size": shapes.codebook,
        "decoder_dim": shapes.decoder_channels,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }


def _audio(shapes: Shapes) -> Json:
    encoder: Tower = shapes.audio
    return {
        "model_type": "qwen3_omni_moe_audio_encoder",
        "activation_function": "gelu",
        "num_mel_bins": 128,
        "d_model": encoder.hidden,
        "encoder_layers": encoder.layers,
        "num_hidden_layers": encoder.layers,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": encoder.intermediate,
        "downsample_hidden_size": shapes.audio_conv_channels,
        "max_source_positions": 1500,
        "scale_embedding": False,
        "n_window": 50,
        "n_window_infer": 800,
        "conv_chunksize": 500,
        "output_dim": shapes.thinker.hidden,
    }


def _vision(shapes: Shapes) -> Json:
    encoder: Tower = shapes.vision
    return {
        "model_type": "qwen3_omni_moe_vision_encoder",
        "hidden_act": "gelu_pytorch_tanh",
        "depth": encoder.layers,
        "hidden_size": encoder.hidden,
        "num_heads": encoder.heads,
        "intermediate_size": encoder.intermediate,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "spatial_patch_size": 16,
        "num_position_embeddings": shapes.vision_position_grid**2,
        "deepstack_visual_indexes": list(shapes.deepstack_blocks),
        "out_hidden_size": shapes.thinker.hidden,
    }


def _decoder(decoder: Decoder, rope_theta: int) -> Json:
    """The keys that all four decoders share, and the keys that mixture-of-experts decoders add."""
    config: Json = {
        "hidden_act": "silu",
        "hidden_size": decoder.hidden,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate_size": decoder.intermediate,
        "attention_bias": False,
        "attention_dropout": 0,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6,
        "rope_theta": rope_theta,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if decoder.experts:
        config |= {
            "num_experts": decoder.experts,
            "num_experts_per_tok": decoder.experts_per_token,
            "moe_intermediate_size": decoder.intermediate,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config


def _mrope(head_dim: int) -> Json:
    """The division of the `head_dim / 2` rotary frequencies among time, height and width.

    The frequencies are interleaved as T H W T H W …, so height and width get at most a third each. The real model gives
    20 of 64 frequencies to height, 20 to width, and the rest to time.
    """
    frequencies = head_dim // 2
    side = frequencies * 20 // 64
    section = [frequencies - 2 * side, side, side]
    return {"rope_scaling": {"rope_type": "default", "mrope_section": section, "interleaved": True}}


def _media_tokens(vocabulary: Vocabulary) -> Json:
    """The token ids by which the thinker and the talker find media rows, and the settings for the positions of these
    rows.
    """
    return {
        "audio_token_id": vocabulary.id("<|audio_pad|>"),
        "image_token_id": vocabulary.id("<|image_pad|>"),
        "video_token_id": vocabulary.id("<|video_pad|>"),
        "audio_start_token_id": vocabulary.id("<|audio_start|>"),
        "audio_end_token_id": vocabulary.id("<|audio_end|>"),
        "vision_start_token_id": vocabulary.id("<|vision_start|>"),
        "position_id_per_seconds": _POSITIONS_PER_SECOND,
        "seconds_per_chunk": 2,
        "initializer_range": 0.02,
    }
