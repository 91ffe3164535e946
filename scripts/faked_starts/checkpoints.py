"""Makes checkpoints of Qwen3-Omni-30B-A3B like the published ones, but with sparse files in place of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omni_pipeline.errors import StartupError
from stages.checkpoint.tensor_shapes import stored_tensors

ROOT = Path(__file__).parents[2]
SIZES = ROOT / "tests" / "data" / "qwen3_omni_30b"

# Modules that publishers do not quantise: routers, embeddings, and everything except the layers of thinker and talker.
_KEPT = ["lm_head", "visual", "audio_tower", "code_predictor", "code2wav", "mlp.gate", "shared_expert_gate"]

_SHARD_BYTES = 4 * 1024**3

# Data type of a number by its size in bytes. Numbers of less than one byte are packed into integers.
_DTYPES: dict[float, tuple[str, int]] = {1: ("F8_E4M3", 1), 2: ("BF16", 2), 4: ("F32", 4)}

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
"""The ``quantization_config`` of each kind of checkpoint, by the name of the kind; None for unquantised weights."""


def write(kind: str, directory: Path, *, layers: int | None = None) -> Path:
    """Make a checkpoint's directory under `directory`. Returns its path.

    Args:
        kind: One of `QUANTIZATION`.
        layers: Number of layers of thinker and talker each; None keeps all layers.
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
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        # the simulated starts do not read these files, but a checkpoint without them is incomplete
        (target / name).write_text("{}")
    _write_weights(target, config)
    return target


def _write_weights(directory: Path, config: dict[str, Any]) -> None:
    """Make the weight files: headers and lengths are right, but the files use no space on the disk."""
    try:
        tensors = stored_tensors(config)
    except StartupError:  # the names and shapes of this checkpoint's tensors cannot be derived from its configuration
        return
    shards: dict[int, dict[str, int]] = {}
    begin = 0
    for name, (_, size, *_) in tensors.items():
        shards.setdefault(begin // _SHARD_BYTES, {})[name] = size
        begin += size
    files = {
        f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards.values(), 1)
    }
    for file, shard in files.items():
        _write_shard(directory / file, shard, {name: tensors[name][0] for name in shard})
    index = {"metadata": {}, "weight_map": {name: file for file, shard in files.items() for name in shard}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(path: Path, sizes: dict[str, int], elements: dict[str, int]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, size in sizes.items():
        dtype, item = _DTYPES.get(size / elements[name], ("I32", 4))
        header[name] = {"dtype": dtype, "shape": [size // item], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
