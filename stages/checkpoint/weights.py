"""Loads one part of a checkpoint, such as the vision tower, without reading the other parts."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, Qwen3OmniMoeConfig
from transformers.utils import logging as transformers_logging

from omni_pipeline.errors import StartupError
from stages.checkpoint.quantization import is_quantised

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

Part = TypeVar("Part", bound=PreTrainedModel)


def load_part(
    part: type[Part], config: Any, model_path: str | Path, prefix: str, dtype: torch.dtype, device: str
) -> Part:
    """Build `part`, and make it ready for inference. `config` is the part's own config. The weights are the
    checkpoint's tensors whose names start with `prefix`.

    Raises:
        StartupError: The weights are missing, damaged, or do not fit the configuration.
    """
    state = read_tensors(model_path, prefix)
    transformers_logging.disable_progress_bar()
    model, report = part.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # missing tensors are reported below, in more detail than in the exception
    )
    wrong = {kind: sorted(keys) for kind, keys in report.items() if keys}
    if wrong:
        listed = "; ".join(f"{kind}: {', '.join(map(str, keys[:3]))}" for kind, keys in wrong.items())
        raise StartupError(f"{model_path}: the weights {prefix}* do not fit config.json ({listed})")
    return model.to(device).eval().requires_grad_(False)


def read_config(model_path: str) -> dict[str, Any]:
    """The checkpoint's config.json."""
    config: dict[str, Any] = json.loads((Path(model_path) / "config.json").read_text())
    return config


def read_tensors(model_path: str | Path, prefix: str) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors whose names start with `prefix`, on the CPU, keyed by the name without the prefix.

    Raises:
        StartupError: There are no such tensors, they are quantised, or a file is missing or damaged.
    """
    root = Path(model_path)
    tensors = {}
    for file, names in _files_with(root, prefix).items():
        try:
            with safe_open(root / file, "pt") as shard:
                for name in names if names is not None else shard.keys():
                    if name.startswith(prefix):
                        tensors[name.removeprefix(prefix)] = _plain(name, shard.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise StartupError(f"{root / file} cannot be read: {error}; download the checkpoint again") from error
    if not tensors:
        raise StartupError(f"{root} has no weights {prefix}*, so this checkpoint is not a Qwen3-Omni checkpoint")
    return tensors


def tensor_names(model_path: str | Path, prefix: str) -> list[str]:
    """Names of the checkpoint's tensors that start with `prefix`. Raises StartupError if a file is damaged."""
    root = Path(model_path)
    found: list[str] = []
    for file, names in _files_with(root, prefix).items():
        found += names if names is not None else _names(root / file)
    return [name for name in found if name.startswith(prefix)]


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise StartupError(f"{path} cannot be read: {error}; download the checkpoint again") from error


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns `tensor` unchanged. Raises StartupError if the tensor is quantised."""
    if tensor.dtype.itemsize == 1 or is_quantised(name):
        raise StartupError(
            f"{name} is quantised: only the language models of thinker and talker may be quantised; use a checkpoint "
            "in which the encoders, the code predictor and the vocoder are not quantised"
        )
    return tensor


def encoder_dtype(option: str | None, config: Qwen3OmniMoeConfig, device: str) -> torch.dtype:
    """The data type in which a stage computes: the configured type, if there is one. Without a configured type, the
    stage computes in float32 on a CPU, and in the checkpoint's type on a GPU.

    Raises:
        StartupError: The configured name is not the name of a floating-point type.
    """
    if option is None:
        return torch.float32 if device == "cpu" else config.dtype or torch.bfloat16
    dtype = getattr(torch, option, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise StartupError(f"dtype {option!r} is unknown; use float32, bfloat16 or float16")
    return dtype


def _files_with(root: Path, prefix: str) -> dict[str, list[str] | None]:
    """The weight files to open, each with the names of the wanted tensors. Without an index, the names are None: the
    caller must then look into the file.
    """
    index = root / INDEX_FILE
    if not index.is_file():
        return {SINGLE_FILE: None}
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError) as error:
        raise StartupError(f"{index} is damaged; download the checkpoint again") from error
    files: defaultdict[str, list[str] | None] = defaultdict(list)
    for name, file in weight_map.items():
        if name.startswith(prefix):
            names = files[file]
            assert names is not None
            names.append(name)
    return dict(files)
