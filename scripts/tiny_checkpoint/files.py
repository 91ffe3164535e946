"""Writes a checkpoint's files with the names that they have on the hub."""

import json
from pathlib import Path
from typing import Any

from transformers import Qwen3OmniMoeForConditionalGeneration

from . import config, tokenizer
from .config import Json
from .tokenizer import Vocabulary


def write_checkpoint(
    directory: Path,
    model: Qwen3OmniMoeForConditionalGeneration,
    model_config: Json,
    preprocessor: Json,
    vocabulary: Vocabulary,
    max_shard_size: str,
) -> None:
    """Write the weights in their dtype, the configurations, the tokenizer and the chat template."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    for file in directory.glob("*.safetensors"):  # `save_pretrained` makes the files readable by the owner only
        file.chmod(0o644)

    # Write these files after the weights: `save_pretrained` writes two configurations in its own spelling, and these
    # files replace them in the hub's spelling.
    write_json(directory / "config.json", model_config)
    write_json(directory / "generation_config.json", config.generation_config(vocabulary))
    write_json(directory / "preprocessor_config.json", preprocessor)
    write_json(directory / "chat_template.json", chat_template())
    tokenizer.write_tokenizer(vocabulary, directory)


def chat_template() -> Json:
    """The content of chat_template.json."""
    return {"chat_template": Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
