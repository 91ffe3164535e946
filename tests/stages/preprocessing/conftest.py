"""Provides the fixtures of the decoders' tests."""

from collections.abc import Callable

import numpy
import pytest


@pytest.fixture
def damaged() -> Callable[[bytes], list[bytes]]:
    """A function that returns many damaged copies of a file. In each copy, some bytes are overwritten. In half of the
    copies, these bytes are all near the start. Every third copy is also cut off.
    """

    def copies(data: bytes, count: int = 60) -> list[bytes]:
        random = numpy.random.default_rng(len(data))
        result = []
        for number in range(count):
            copy = bytearray(data if number % 3 else data[: random.integers(1, len(data))])
            reach = len(copy) if number % 2 else min(len(copy), 200)
            for place in random.integers(0, reach, size=random.integers(1, 9)):
                copy[place] = random.integers(256)
            result.append(bytes(copy))
        return result

    return copies
