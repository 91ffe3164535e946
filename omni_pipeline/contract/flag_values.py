"""What the text of a flag means: numbers, sizes, indices, or a clear reason why not."""

from __future__ import annotations

from omni_pipeline.sizes import parse_size


def fraction(text: str) -> float:
    """A number between 0 and 1, neither of them included. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is not a number greater than 0 and less than 1.")
    return value


def gpu_indices(text: str) -> list[int]:
    """``0`` or ``0,1``. Raises ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not the index of a GPU, or several with commas between.")
    return [int(part) for part in parts]


def positive(text: str) -> int:
    """A whole number from 1. Raises ValueError."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{text!r} is not a whole number from 1 on.")
    return int(text)


def port(text: str) -> int:
    """A port, or 0. Raises ValueError."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port from 0 to 65535.")
    return int(text)


def size(text: str) -> int:
    """Bytes: ``1000000``, ``64MiB``. Raises ValueError."""
    try:
        return positive(text) if text.isdigit() else parse_size(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a size in bytes, MB, MiB, GB or GiB.") from error


def seconds(text: str) -> float:
    """A positive number. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not a number of seconds.")
    return value
