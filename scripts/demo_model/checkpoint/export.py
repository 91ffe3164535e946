"""Assembles the trained parts into one checkpoint that every program for Qwen3-Omni can read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint.files import write_checkpoint
from torch import Tensor, nn
from transformers import Qwen3OmniMoeForConditionalGeneration

from demo_model.checkpoint.shapes import config_json, model_configuration, preprocessor_json
from demo_model.checkpoint.tokenizer import vocabulary


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write weights under the names that they have in the whole model. `path` is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, unfinished)
    unfinished.rename(path)


def assemble(parts: Iterable[Path], directory: Path, incomplete: bool = False) -> None:
    """Write a checkpoint in bfloat16 into `directory`.

    Args:
        parts: Files of weights. Each weight has the name that it has in the whole model.
        incomplete: Whether weights may be missing. Missing weights are drawn at random.

    Raises:
        ValueError: A weight is missing, or a weight has a name that does not exist in the model.
    """
    torch.manual_seed(0)
    model = Qwen3OmniMoeForConditionalGeneration(model_configuration())
    weights: dict[str, Tensor] = {}
    for part in parts:
        weights |= load_file(part)
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or (missing and not incomplete):
        raise ValueError(f"missing weights: {missing}; unknown weights: {unknown}")
    for name in missing:  # the model's own initialisation does not cover all missing weights
        if (weight := model.get_parameter(name)).dim() > 1:
            nn.init.normal_(weight, std=0.02)

    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_checkpoint(
        unfinished, model.to(torch.bfloat16), config_json("bfloat16"), preprocessor_json(), vocabulary(), "1TB"
    )
    shutil.copy(Path(__file__).with_name("model_card.md"), unfinished / "README.md")
    if directory.exists():
        shutil.rmtree(directory)
    unfinished.rename(directory)
