"""Writes a checkpoint's files with the names that they have on the hub."""

import json
from pathlib import Path
from typing import Any

from transformers import Qwen3OmniMoeForConditionalGeneration

from . import config, tokenizer
from .config import Json
from .tokenizer import Vocabulary

# The line of chat_template.jinja at which the loop over the turns of the conversation begins.
_TURNS = "{%- for message in messages -%}\n"


def write_checkpoint(
    directory: Path,
    model: Qwen3OmniMoeForConditionalGeneration,
    model_config: Json,
    preprocessor: Json,
    vocabulary: Vocabulary,
    max_shard_size: str,
    *,
    reasons: bool = False,
) -> None:
    """Write the weights in their dtype, the configurations, the tokenizer and the chat template.

    Args:
        reasons: Whether to write the chat template of a model that reasons before it answers.
    """
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    for file in directory.glob("*.safetensors"):  # `save_pretrained` makes the files readable by the owner only
        file.chmod(0o644)

    # These files must be written after the weights. With the weights, `save_pretrained` writes two configurations in
    # its own spelling. Our files overwrite these two files, because ours have the hub's spelling.
    write_json(directory / "config.json", model_config)
    write_json(directory / "generation_config.json", config.generation_config(vocabulary))
    write_json(directory / "preprocessor_config.json", preprocessor)
    write_json(directory / "chat_template.json", {"chat_template": chat_template(reasons=reasons)})
    tokenizer.write_tokenizer(vocabulary, directory)


def chat_template(*, reasons: bool) -> str:
    """The chat template in Jinja's language. The template of a model that reasons renders the turns differently."""
    template = _source("chat_template.jinja")
    if reasons:
        head, turns, _ = template.partition(_TURNS)
        assert turns, "the template has lost the line where its turns begin"
        template = head + _source("reasoning_turns.jinja")
    return template


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
