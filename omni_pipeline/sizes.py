"""Parses sizes of memory, such as ``12GiB``."""

from __future__ import annotations

import re

MIB = 1024**2


_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) *(?P<unit>GiB|MiB|GB|MB)")


_BYTES = {"GiB": 1024**3, "GB": 10**9, "MiB": MIB, "MB": 10**6}


def parse_size(text: str) -> int:
    """The number of bytes of a size such as ``12GiB`` or ``800 MB``. The text has the form of `config.schema.Size`.
    Raises ValueError.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size")
    return int(float(found["number"]) * _BYTES[found["unit"]])
