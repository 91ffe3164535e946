"""Finds the checkpoint that ``--model-path`` names, and checks the checkpoint before any data is loaded."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from omni_pipeline.contract.graph import CheckpointSpec
from omni_pipeline.errors import StartupError

_INDEX = "model.safetensors.index.json"

# When a tensor of one of these types is loaded, it is converted to the type in which its stage computes.
_CAST = ("F64", "F32", "F16", "BF16")

# Maximum length of a safetensors header, in bytes. A longer header is an error.
_MAX_HEADER_BYTES = 100 * 1024 * 1024


class _WeightIndex(Struct):
    """The part of ``model.safetensors.index.json`` that lists the file of each tensor."""

    weight_map: dict[str, str]


class Stored(Struct, frozen=True):
    """A tensor of a checkpoint: number of elements, bytes, and whether it keeps its data type when it is loaded.

    Quantised weights keep their type: one-byte floats, and integers into which several numbers are packed.
    """

    elements: int
    nbytes: int
    fixed: bool = False


class _Weight(Struct):
    """A tensor in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    @property
    def stored(self) -> Stored:
        begin, end = self.data_offsets
        return Stored(math.prod(self.shape), end - begin, self.dtype not in _CAST)


class Checkpoint(Struct, frozen=True):
    """A checkpoint with weights, or only with a ``config.json``.

    Attributes:
        path: Absolute path of the checkpoint's directory.
        config: The parsed ``config.json`` of the checkpoint.
        tensors: The checkpoint's tensors, keyed by name.
    """

    path: str
    config: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def dtype(self) -> str:
        """Torch's name of the data type in which most weights are stored."""
        name = self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"
        return str(name).removeprefix("torch.")

    def held_bytes(self, prefixes: Sequence[str], item_size: int | None) -> int:
        """Number of bytes of some tensors after loading: the tensors whose names begin with one of `prefixes`.

        Args:
            item_size: Bytes of one number after loading; None if tensors keep the type in which they are stored.
        """
        held = (tensor for name, tensor in self.tensors.items() if name.startswith(tuple(prefixes)))
        return sum(
            tensor.nbytes if item_size is None or tensor.fixed else tensor.elements * item_size for tensor in held
        )


def find_checkpoint(model_path: str, spec: CheckpointSpec, announce: Callable[[str], None]) -> Checkpoint:
    """Finds a checkpoint by its directory, or by its name on the Hugging Face hub.

    Args:
        announce: Called with a message before a search on the hub, which may take long.

    Raises:
        StartupError: the checkpoint does not exist, belongs to another model, or is not complete.
    """
    if os.path.isdir(model_path):
        return inspect(Path(model_path), spec)
    if os.path.exists(model_path):
        raise StartupError(f"{model_path} is a file: --model-path needs the checkpoint's directory.")
    if not _is_hub_name(model_path):
        raise StartupError(f"There is no directory {model_path}: check --model-path.")
    return inspect(_download(model_path, announce), spec)


def inspect(path: Path, spec: CheckpointSpec) -> Checkpoint:
    """The checkpoint in a directory. Raises StartupError if the checkpoint is not complete."""
    config = _config(path, spec)
    for alternatives in spec.files:
        if not any(all((path / name).is_file() for name in names) for names in alternatives):
            wanted = " or ".join(" with ".join(names) for names in alternatives)
            raise _incomplete(path, f"{wanted} is missing")
    tensors: dict[str, Stored] = {}
    for name, expected in _weight_files(path).items():
        weights = _weights(path, name)
        missing = expected - weights.keys()
        if missing:
            raise _incomplete(path, f"{name} lacks the tensor {min(missing)} that {_INDEX} lists")
        tensors.update({tensor: weight.stored for tensor, weight in weights.items()})
    return Checkpoint(str(path.resolve()), config, tensors)


def describe_checkpoint(model_path: str, spec: CheckpointSpec) -> Checkpoint:
    """Describes a checkpoint without loading it. Reads the headers of the weight files or, without weights,
    ``config.json``.

    Args:
        model_path: A directory, with or without weights; or the path of a ``config.json``; or a hub name of a model
            that is in the hub's cache.

    Raises:
        StartupError: `model_path` does not exist, or the checkpoint there is wrong or incomplete.
    """
    path = Path(model_path)
    if not path.exists() and _is_hub_name(model_path):
        path = _cached(model_path) or path
    if path.is_file() and path.name == "config.json":
        path = path.parent
    if not path.is_dir():
        where = (
            ". The hub's cache has no such model either, and this command downloads nothing"
            if _is_hub_name(model_path)
            else ""
        )
        raise StartupError(
            f"There is no directory {model_path}{where}. Set --model-path to the directory of a checkpoint, or to a "
            "directory that has only the config.json of a checkpoint."
        )
    if spec.tensors is None or any(path.glob("*.safetensors")):
        return inspect(path, spec)
    return described(str(path.resolve()), _config(path, spec), spec)


def config_of(model_path: str, spec: CheckpointSpec, *, download: bool) -> dict[str, Any] | None:
    """The parsed ``config.json`` of a checkpoint. The other files of the checkpoint need not exist.

    Args:
        model_path: The same as for `find_checkpoint` and `describe_checkpoint`.
        download: Whether to ask the hub for a model that is not in the hub's cache.

    Returns:
        None if there is no ``config.json``. In this case, `find_checkpoint` and `describe_checkpoint` raise an error
            with the reason.

    Raises:
        StartupError: the file is damaged, or belongs to another model.
    """
    path = Path(model_path)
    if not path.exists() and _is_hub_name(model_path):
        path = (_config_on_hub(model_path) if download else _cached(model_path)) or path
    if path.name == "config.json":
        path = path.parent
    return _config(path, spec) if (path / "config.json").is_file() else None


def described(path: str, config: dict[str, Any], spec: CheckpointSpec) -> Checkpoint:
    """The checkpoint that a ``config.json`` implies. Raises StartupError if its tensors cannot be derived."""
    if spec.tensors is None:
        raise StartupError(f"The tensors of a {spec.title} checkpoint cannot be derived from its config.json.")
    return Checkpoint(path, config, {name: Stored(*stored) for name, stored in spec.tensors(config).items()})


def _config(path: Path, spec: CheckpointSpec) -> dict[str, Any]:
    """Reads a ``config.json``, and checks that it belongs to one of the graph's models."""
    config: dict[str, Any] = _read_json(path, "config.json", dict[str, Any])
    model_type = config.get("model_type", "")
    if model_type not in spec.model_types:
        raise StartupError(
            f"{path} is not a {spec.title} model: its config.json has the model_type {model_type!r}, "
            f"not {' or '.join(map(repr, spec.model_types))}."
        )
    return config


def _weight_files(path: Path) -> dict[str, set[str]]:
    """Names of the weight files, each with the tensors that the file must contain. If there is no index, the sets of
    tensors are empty.
    """
    if not (path / _INDEX).is_file():
        names = sorted(file.name for file in path.glob("*.safetensors"))
        if not names:
            raise _incomplete(path, "there is no *.safetensors file in it")
        return {name: set() for name in names}
    files: dict[str, set[str]] = {}
    for tensor, name in _read_json(path, _INDEX, _WeightIndex).weight_map.items():
        files.setdefault(name, set()).add(tensor)
    missing = [name for name in files if not (path / name).is_file()]
    if missing:
        raise _incomplete(path, f"{len(missing)} of {len(files)} weight files are missing, for example {min(missing)}")
    return files


def _weights(path: Path, name: str) -> dict[str, _Weight]:
    """The header of a safetensors file. Checks that the file is at least as long as its header requires."""
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


def _read_json(path: Path, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode((path / name).read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise _incomplete(path, f"{name} is missing") from error
    except OSError as error:
        raise StartupError(f"Cannot read {path / name}: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise StartupError(f"{path / name} is not valid: {error}.") from error


def _incomplete(path: Path, what: str) -> StartupError:
    return StartupError(f"The checkpoint {path} is not complete: {what}. Download or copy it again.")


def _is_hub_name(model_path: str) -> bool:
    """Whether the path has the form ``owner/name``."""
    owner, slash, name = model_path.partition("/")
    return bool(slash and owner and name) and "/" not in name and owner[0] not in ".~"


def _cached(name: str) -> Path | None:
    """The ``config.json`` of a model in the hub's cache; None if it has not been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found) if isinstance(found, str) else None


def _config_on_hub(name: str) -> Path | None:
    """The ``config.json`` of a model on the hub or, if the hub cannot be reached, in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # `hf_hub_download` would repeat a request that fails, but `snapshot_download` does not
        return Path(snapshot_download(name, allow_patterns=["config.json"])) / "config.json"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None


def _download(name: str, announce: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    announce(f"There is no directory {name}: looking for it on the Hugging Face hub (download or cache)")
    try:
        return Path(snapshot_download(name))
    except RepositoryNotFoundError as error:
        raise StartupError(
            f"There is no directory {name}. The Hugging Face hub has no model of this name, or refuses access to it. "
            "Check --model-path. If the model needs a login, log in to the hub."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StartupError(
            f"There is no directory {name}. The hub's cache contains no model of this name, and the hub cannot be "
            "reached. Set --model-path to the directory of a checkpoint."
        ) from error
