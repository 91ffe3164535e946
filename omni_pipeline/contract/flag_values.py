"""Parses the values of flags: numbers, sizes and indices, with a clear message for a bad value."""

from __future__ import annotations

from omni_pipeline.sizes import parse_size


def fraction(text: str) -> float:
    """A number that is greater than 0 and less than 1. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is not a number greater than 0 and less than 1.")
    return value


def gpu_indices(text: str) -> list[int]:
    """GPU indices from ``0`` or ``0,1``. Raises ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not a GPU index or a comma-separated list of GPU indices, such as 0,1.")
    return [int(part) for part in parts]


def positive(text: str) -> int:
    """An integer that is at least 1. Raises ValueError."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{text!r} is not a whole number of at least 1.")
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


def replicas(text: str) -> dict[str, dict[str, int]]:
    """The settings of groups of stages, from the number of replicas of each group: ``voice=2`` or
    ``voice=2,vocoder=3``. Raises ValueError.
    """
    groups: dict[str, dict[str, int]] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        if not (name and equals and number.isascii() and number.isdigit() and int(number)):
            raise ValueError(
                f"{part.strip()!r} is not the name of a group with a number of replicas, such as vocoder=3."
            )
        if name in groups:
            raise ValueError(f"the group {name} is named twice.")
        groups[name] = {"replicas": int(number)}
    return groups


def seconds(text: str) -> float:
    """A positive number. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not a positive number of seconds.")
    return value
