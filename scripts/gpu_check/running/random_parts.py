"""Builds stages with random weights instead of a checkpoint's weights, at the 30B model's sizes or at small sizes.

The stages load their parts with `load_part`. This module replaces `load_part` by a function that builds the parts on
the device with `_from_config`. This is much faster than reading tens of gigabytes, and needs no file except
config.json.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3OmniMoeConfig
from transformers.utils import logging as transformers_logging

from omni_pipeline.contract.stage import StageContext
from omni_pipeline.contract.stage_memory import Request, Situation

CONFIG = Path(__file__).parents[3] / "tests" / "data" / "qwen3_omni_30b" / "config.json"

_USERS = (
    "stages.encoders.image_encoder",
    "stages.encoders.audio_encoder",
    "stages.code_predictor.stage",
    "stages.code2wav.stage",
)


def smaller(config: dict[str, Any]) -> dict[str, Any]:
    """The 30B model's config with one layer, few codes and narrow convolutions; the towers keep their widths."""
    config["thinker_config"]["vision_config"] |= {"depth": 1, "deepstack_visual_indexes": [0]}
    config["thinker_config"]["audio_config"] |= {"encoder_layers": 1, "num_hidden_layers": 1}
    talker = config["talker_config"]
    talker["num_code_groups"] = 4
    talker["text_config"] |= {"hidden_size": 256, "vocab_size": 1280, "num_hidden_layers": 1}
    talker["code_predictor_config"] |= {
        "num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 256, "num_code_groups": 4,
    }  # fmt: skip
    config["code2wav_config"] |= {
        "num_hidden_layers": 1, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 256, "codebook_size": 256, "num_quantizers": 4, "decoder_dim": 96,
    }  # fmt: skip
    return config


class RandomModel:
    """A checkpoint directory with only a config.json; stages that are built from it get random weights.

    Args:
        directory: Directory for the config.
        device: ``cpu`` or ``cuda``.
        small: Whether to use small sizes.
    """

    def __init__(self, directory: Path, device: str, *, small: bool) -> None:
        content = json.loads(CONFIG.read_text())
        self.content: dict[str, Any] = smaller(content) if small else content
        (directory / "config.json").write_text(json.dumps(self.content))
        self.path = str(directory)
        self.device = device
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.config = Qwen3OmniMoeConfig.from_pretrained(self.path)
        transformers_logging.set_verbosity_error()
        for name in _USERS:
            module: Any = importlib.import_module(name)
            module.load_part = self._load_part
            if hasattr(module, "read_tensors"):
                module.read_tensors = self._read_tensors

    def context(self, stage: str, options: Any) -> StageContext:
        """The context that a worker would give to a stage."""
        return StageContext(stage, self.path, self.device, options, frozenset({stage}), scratch=self.path)

    def situation(self, options: Any) -> Situation:
        """The situation that `sgl-omni plan` would pass to `memory_needs` for a stage that is alone on its GPU."""
        return Situation(
            config=self.content,
            options=options,
            device=self.device,
            item_size=self.dtype.itemsize,
            ranks=1,
            device_memory=80 * 1024**3,
            stages=frozenset({"thinker", "talker_ar"}),
            request=Request(),
        )

    def _load_part(self, part: Any, config: Any, model_path: str, prefix: str, dtype: torch.dtype, device: str) -> Any:
        torch.manual_seed(0)
        with torch.device(device):
            model = part._from_config(config, dtype=dtype)
        return model.to(device).eval().requires_grad_(False)

    def _read_tensors(self, model_path: str, prefix: str) -> dict[str, torch.Tensor]:
        """The talker's codec embedding. The stage `code_predictor` reads it without `load_part`. No other stage in
        `_USERS` reads a tensor without `load_part`.
        """
        text = self.config.talker_config.text_config
        generator = torch.Generator().manual_seed(1)
        return {"weight": torch.randn(text.vocab_size, text.hidden_size, generator=generator) * 0.02}
