"""Checkpoints of Qwen3-Omni-30B-A3B as they are published, each as a directory with nothing but its ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SIZES = ROOT / "tests" / "data" / "qwen3_omni_30b"

# What publishers leave as it is: what routes, what embeds, and all but the layers of thinker and talker.
_KEPT = ["lm_head", "visual", "audio_tower", "code_predictor", "code2wav", "mlp.gate", "shared_expert_gate"]

QUANTIZATION: dict[str, dict[str, Any] | None] = {
    "BF16": None,
    "FP8": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    },
    "INT4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [rf"re:.*{name.replace('.', chr(92) + '.')}.*" for name in _KEPT],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 128,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
    },
}
"""``quantization_config`` by the name of the kind; None for plain weights."""


def write(kind: str, directory: Path, *, layers: int | None = None) -> Path:
    """Make a checkpoint's directory under `directory`, and give its path.

    Args:
        kind: One of `QUANTIZATION`.
        layers: Of thinker and talker each, instead of all.
    """
    config = json.loads((SIZES / "config.json").read_text())
    quantization = QUANTIZATION[kind]
    if quantization is not None:
        config["quantization_config"] = quantization
    if layers is not None:
        for part in ("thinker_config", "talker_config"):
            config[part]["text_config"]["num_hidden_layers"] = layers
    target = directory / kind
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    return target
