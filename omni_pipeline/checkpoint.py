"""Finds the checkpoint that ``--model-path`` names, and says what is wrong with it before anything is loaded."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from omni_pipeline.errors import StartupError
from omni_pipeline.graph import CheckpointSpec

_INDEX = "model.safetensors.index.json"

# A safetensors header beyond this is not one.
_MAX_HEADER_BYTES = 100 * 1024 * 1024


class _Config(Struct):
    """The part of ``config.json`` that says which model this is."""

    model_type: str = ""


class _Index(Struct):
    """``model.safetensors.index.json``: the file of each tensor."""

    weight_map: dict[str, str]


class _Weight(Struct):
    """A tensor in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Checkpoint(Struct, frozen=True):
    """A complete checkpoint.

    Attributes:
        path: Its directory, absolute.
        elements: Number of elements of each tensor, by name.
    """

    path: str
    elements: dict[str, int]

    def count(self, prefixes: Sequence[str]) -> int:
        """Elements of the tensors whose names begin with one of `prefixes`."""
        return sum(count for name, count in self.elements.items() if name.startswith(tuple(prefixes)))


def resolve(model_path: str, spec: CheckpointSpec, announce: Callable[[str], None]) -> Checkpoint:
    """The checkpoint at a directory, or on the Hugging Face hub by name.

    Args:
        announce: Told when something takes time.

    Raises:
        StartupError: it is not there, not of the right model, or not complete.
    """
    if os.path.isdir(model_path):
        return inspect(Path(model_path), spec)
    if os.path.exists(model_path):
        raise StartupError(f"{model_path} is a file: --model-path takes the checkpoint's directory.")
    if not _is_hub_name(model_path):
        raise StartupError(f"There is no directory {model_path}: check --model-path.")
    return inspect(_download(model_path, announce), spec)


def inspect(path: Path, spec: CheckpointSpec) -> Checkpoint:
    """The checkpoint in a directory, when it is all there. Raises StartupError."""
    config = _read_json(path, "config.json", _Config)
    if config.model_type not in spec.model_types:
        raise StartupError(
            f"{path} is not a {spec.title} model: its config.json says model_type {config.model_type!r}, "
            f"not {' or '.join(map(repr, spec.model_types))}."
        )
    for alternatives in spec.files:
        if not any(all((path / name).is_file() for name in names) for names in alternatives):
            wanted = " or ".join(" with ".join(names) for names in alternatives)
            raise _incomplete(path, f"{wanted} is missing")
    elements: dict[str, int] = {}
    for name, expected in _weight_files(path).items():
        weights = _weights(path, name)
        missing = expected - weights.keys()
        if missing:
            raise _incomplete(path, f"{name} lacks the tensor {min(missing)} that {_INDEX} promises")
        elements.update({tensor: math.prod(weight.shape) for tensor, weight in weights.items()})
    return Checkpoint(str(path.resolve()), elements)


def _weight_files(path: Path) -> dict[str, set[str]]:
    """Names of the weight files, with the tensors each has to hold (none are known without an index)."""
    if not (path / _INDEX).is_file():
        names = sorted(file.name for file in path.glob("*.safetensors"))
        if not names:
            raise _incomplete(path, "there is no *.safetensors file in it")
        return {name: set() for name in names}
    files: dict[str, set[str]] = {}
    for tensor, name in _read_json(path, _INDEX, _Index).weight_map.items():
        files.setdefault(name, set()).add(tensor)
    missing = [name for name in files if not (path / name).is_file()]
    if missing:
        raise _incomplete(path, f"{len(missing)} of {len(files)} weight files are missing, first {min(missing)}")
    return files


def _weights(path: Path, name: str) -> dict[str, _Weight]:
    """The header of a safetensors file that is as long as its header says."""
    with open(path / name, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header = file.read(length) if 2 <= length <= _MAX_HEADER_BYTES else b""
        size = os.fstat(file.fileno()).st_size
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        weights = {tensor: msgspec.json.decode(entry, type=_Weight) for tensor, entry in raw.items()}
    except msgspec.MsgspecError as error:
        raise _incomplete(path, f"{name} is not a safetensors file ({size} bytes)") from error
    needed = 8 + length + max((weight.data_offsets[1] for weight in weights.values()), default=0)
    if size < needed:
        raise _incomplete(path, f"{name} is cut off: it has {size} of {needed} bytes")
    return weights


def _read_json(path: Path, name: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode((path / name).read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise _incomplete(path, f"{name} is missing") from error
    except OSError as error:
        raise StartupError(f"Cannot read {path / name}: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise StartupError(f"{path / name} is not what it should be: {error}.") from error


def _incomplete(path: Path, what: str) -> StartupError:
    return StartupError(f"The checkpoint {path} is not complete: {what}. Download or copy it again.")


def _is_hub_name(model_path: str) -> bool:
    """Whether it has the form ``owner/name``."""
    owner, slash, name = model_path.partition("/")
    return bool(slash and owner and name) and "/" not in name and owner[0] not in ".~"


def _download(name: str, announce: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    announce(f"{name} is no directory here: looking for it on the Hugging Face hub (download or cache)")
    try:
        return Path(snapshot_download(name))
    except RepositoryNotFoundError as error:
        raise StartupError(f"The hub has no model {name}, or it needs a login; nor is it a directory here.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StartupError(
            f"{name} is neither a directory here nor in the hub's cache, and the hub cannot be reached: "
            "pass --model-path with a directory."
        ) from error
