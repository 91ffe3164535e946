"""Compares the checkpoints of two hosts before anything is loaded.

The digest of a weight file covers its size and its header: the names, types and shapes of all tensors. The values of
the weights are not read, because that would take as long as loading them. So two checkpoints with the same shapes and
different values have the same digest, unless another file differs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

_WEIGHTS = ".safetensors"

# Files with these endings determine how a checkpoint computes. Other files, such as a description, may differ.
_ENDINGS = (".json", ".txt", ".jinja", ".model", ".tiktoken", _WEIGHTS)

_MOST_NAMES = 3


def digest(model_path: str) -> dict[str, str]:
    """The SHA-256 of the files in a checkpoint, keyed by the names of the files. Files that cannot change the results
    of the model are left out. For a weight file, the hash covers only its size and its header.

    Args:
        model_path: Directory of the checkpoint; empty if the stages load no checkpoint.

    Raises:
        OSError: the directory or a file cannot be read.
    """
    if not model_path:
        return {}
    return {
        path.name: _hash(path)
        for path in sorted(Path(model_path).iterdir())
        if path.is_file() and path.suffix in _ENDINGS and not path.name.startswith(".")
    }


def different_files(own: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """The names of the files that differ or are missing on one side, for a message; empty if there are no such
    files.
    """
    names = sorted(name for name in {*own, *theirs} if own.get(name) != theirs.get(name))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        if path.suffix != _WEIGHTS:
            return hashlib.file_digest(file, "sha256").hexdigest()
        length = file.read(8)
        header = file.read(struct.unpack("<Q", length)[0]) if len(length) == 8 else b""
    return hashlib.sha256(length + header + str(path.stat().st_size).encode()).hexdigest()
