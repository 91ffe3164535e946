"""Defines the sizes of the demo model, and builds the configuration files with these sizes."""

from __future__ import annotations

import numpy as np
from tiny_checkpoint.config import Json, model_config, preprocessor_config
from tiny_checkpoint.shapes import Decoder, Shapes, Tower
from transformers import Qwen3OmniMoeConfig

from demo_model.checkpoint.tokenizer import vocabulary

SHAPES = Shapes(
    text_ranks=0,  # this number is not used, because the demo model has its own vocabulary
    thinker=Decoder(192, 5, heads=4, kv_heads=2, head_dim=48, intermediate=128, experts=4, experts_per_token=2),
    audio=Tower(192, 4, heads=4, intermediate=512),
    audio_conv_channels=32,
    vision=Tower(128, 4, heads=4, intermediate=384),
    vision_position_grid=24,
    deepstack_blocks=(1, 2, 3),
    talker=Decoder(192, 4, heads=6, kv_heads=2, head_dim=32, intermediate=192, experts=4, experts_per_token=2),
    talker_projection=256,
    shared_expert=160,
    code_predictor=Decoder(192, 3, heads=6, kv_heads=2, head_dim=32, intermediate=352),
    code_groups=8,
    codebook=256,
    code2wav=Decoder(192, 4, heads=6, kv_heads=6, head_dim=32, intermediate=384),
    code2wav_window=32,
    decoder_channels=192,
)

LEAST_PIXELS, MOST_PIXELS = 64 * 1024, 90 * 1024
"""The minimum and the maximum number of pixels of a scaled picture. A visual token covers 1024 pixels, so a picture has
64 to 90 visual tokens. Clips are scaled within the processor's own bounds.
"""

EMBEDDING_SEED = 20


def config_json(dtype: str = "float32") -> Json:
    """The content of config.json."""
    config = model_config(SHAPES, vocabulary(), dtype)
    config["code2wav_config"]["layer_scale_initial_scale"] = 0.1
    return config


def model_configuration() -> Qwen3OmniMoeConfig:
    return Qwen3OmniMoeConfig(**config_json())


def preprocessor_json() -> Json:
    """The content of preprocessor_config.json."""
    return {**preprocessor_config(), "min_pixels": LEAST_PIXELS, "max_pixels": MOST_PIXELS}


def token_embeddings() -> np.ndarray:
    """The thinker's token embeddings, which are never trained: float32 [vocabulary, hidden], standard normal.

    The thinker and the talker are trained separately, and both read these embeddings. The vocabulary is so small that
    random directions are as good as learned directions. The values survive a round trip through bfloat16.
    """
    rows = config_json()["thinker_config"]["text_config"]["vocab_size"]
    values = np.random.default_rng(EMBEDDING_SEED).standard_normal((rows, SHAPES.thinker.hidden), dtype=np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
