"""Makes a directory that looks like a checkpoint of the talker alone. This is needed because SGLang expects one model
per checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

from stages.checkpoint import quantization

_INDEX = "model.safetensors.index.json"
_PREFIX = "talker."


def talker_view(model_path: str, directory: str) -> str:
    """Make the view under `directory`: the talker's config, and links to the files that contain the talker's weights.

    Returns:
        The view's path. No weight file is copied. The owner of `directory` removes the view.
    """
    source = Path(model_path).resolve()
    view = Path(directory) / "talker"
    view.mkdir()
    (view / "config.json").write_text(json.dumps(_config(json.loads((source / "config.json").read_text()))))
    for name in _weight_files(source):
        (view / name).symlink_to(source / name)
    if (source / _INDEX).exists():
        index = json.loads((source / _INDEX).read_text())
        kept = {key: name for key, name in index["weight_map"].items() if (view / name).exists()}
        (view / _INDEX).write_text(json.dumps({**index, "weight_map": kept}))
    return str(view)


def _config(whole: dict) -> dict:
    """The talker's text config as a Qwen3-MoE config, with the other values that the talker's model reads."""
    talker = whole["talker_config"]
    return {
        **talker["text_config"],
        "model_type": "qwen3_moe",
        "thinker_hidden_size": talker["thinker_hidden_size"],
        "torch_dtype": whole.get("torch_dtype") or whole.get("dtype"),
        **({"quantization_config": said} if (said := quantization.said(whole, "talker")) else {}),
    }


def _weight_files(source: Path) -> list[str]:
    if (source / _INDEX).exists():
        weights = json.loads((source / _INDEX).read_text())["weight_map"]
        return sorted({name for key, name in weights.items() if key.startswith(_PREFIX)})
    return [path.name for path in source.glob("*.safetensors")]
