"""Loads the media files for the requests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from omni_pipeline.errors import StartupError

Kind: TypeAlias = Literal["image", "audio", "video"]

# The kind and the media type of a file, keyed by the suffix of its name.
SUFFIXES: dict[str, tuple[Kind, str]] = {
    ".jpg": ("image", "image/jpeg"),
    ".jpeg": ("image", "image/jpeg"),
    ".png": ("image", "image/png"),
    ".wav": ("audio", "audio/wav"),
    ".flac": ("audio", "audio/flac"),
    ".mp4": ("video", "video/mp4"),
}
# The test media, if the current directory is a checkout. An installed package has no test media.
COMMITTED = Path("tests/data")


class Medium(Struct, frozen=True):
    """One picture, sound or clip: its kind, media type and bytes."""

    kind: Kind
    type: str
    data: bytes


def load_media(directory: Path, kind: Kind) -> list[Medium]:
    """All files of one kind in `directory`, sorted by name.

    Raises:
        StartupError: if `directory` has no file of this kind.
    """
    found = [
        Medium(kind, SUFFIXES[path.suffix][1], path.read_bytes())
        for path in sorted(directory.glob("*"))
        if SUFFIXES.get(path.suffix, (None,))[0] == kind
    ]
    if not found:
        suffixes = ", ".join(suffix for suffix, (known, _) in SUFFIXES.items() if known == kind)
        raise StartupError(f"There is no {kind} ({suffixes}) in {directory}: choose a directory with --media-dir.")
    return found
