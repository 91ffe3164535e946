"""Makes of a checkpoint one with FP8 weights, as others publish them, and one with the numbers that those stand for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# The linear layers of both language models; what routes, what embeds and what speaks keeps its type.
QUANTISED = re.compile(
    r"(thinker|talker)\.model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.(gate|up|down)_proj|mlp\.shared_expert\.(gate|up|down)_proj)\.weight"
)
BLOCK = 16
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantise(source: Path, target: Path, truth: Path) -> int:
    """Write both; the number of weights that were quantised. `target` and `truth` must not exist yet."""
    for directory in (target, truth):
        shutil.copytree(source, directory)
    count = 0
    for file in source.glob("*.safetensors"):
        tensors, quantised = load_file(file), {}
        for name in [name for name in tensors if QUANTISED.fullmatch(name)]:
            weight, scale = _to_fp8(tensors[name])
            quantised |= {name: weight, f"{name}_scale_inv": scale}
            tensors[name] = (weight.float() * _spread(scale, weight.shape)).to(tensors[name].dtype)
            count += 1
        save_file(tensors, truth / file.name, {"format": "pt"})
        save_file(tensors | quantised, target / file.name, {"format": "pt"})
    index = target / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        files = content["weight_map"]
        files |= {f"{name}_scale_inv": file for name, file in files.items() if QUANTISED.fullmatch(name)}
        index.write_text(json.dumps(content))
    config = json.loads((target / "config.json").read_text())
    kept = ["thinker.lm_head", "thinker.visual", "thinker.audio_tower", "talker.code_predictor", "code2wav", "mlp.gate"]
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": kept,
    }
    (target / "config.json").write_text(json.dumps(config))
    return count


def _to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 [rows, columns], and float32 [blocks, blocks] to multiply it by."""
    rows, columns = (-(-size // BLOCK) * BLOCK for size in weight.shape)
    padded = torch.zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight.float()
    largest = padded.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).abs().amax(dim=(1, 3))
    scale = largest.clamp(min=1e-12) / _LARGEST
    return (weight.float() / _spread(scale, weight.shape)).to(torch.float8_e4m3fn), scale


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    whole = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return whole[: shape[0], : shape[1]]
