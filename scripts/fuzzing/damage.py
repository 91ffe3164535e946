"""Damages files in several ways, for example by flipping bits, removing the end, writing wrong numbers, or moving
pieces.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

# Values that overwrite sizes, counts and offsets in headers.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, 0xFFFFFF00)
_HEADER = 512

Damage = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def flip_bits(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Flip one to sixty-four bits anywhere."""
    for _ in range(1 << rng.randrange(7)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_header_bits(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Flip one to eight bits near the beginning."""
    for _ in range(1 << rng.randrange(4)):
        data[rng.randrange(min(len(data), _HEADER))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Remove the end."""
    del data[rng.randrange(1, max(2, len(data))) :]


def behead(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Remove the beginning."""
    del data[: rng.randrange(1, max(2, min(len(data), _HEADER)))]


def lie(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Overwrite one to four numbers in the header."""
    for _ in range(rng.randrange(1, 5)):
        size = rng.choice((1, 2, 4, 8))
        place = rng.randrange(max(1, min(len(data), _HEADER) - size))
        number = rng.choice(_NUMBERS) & (1 << 8 * size) - 1
        data[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))


def lie_anywhere(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Overwrite a number anywhere."""
    size = rng.choice((2, 4, 8))
    place = rng.randrange(max(1, len(data) - size))
    data[place : place + size] = (rng.choice(_NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "big")


def hole(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Overwrite a piece with zeros."""
    begin = rng.randrange(len(data))
    end = rng.randrange(begin, len(data)) + 1
    data[begin:end] = bytes(end - begin)


def cut_out(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Remove a piece."""
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.randrange(1, 1 + max(1, len(data) // 4))]


def repeat(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Repeat a piece many times."""
    begin = rng.randrange(len(data))
    piece = bytes(data[begin : begin + rng.randrange(1, 256)])
    data[begin:begin] = piece * rng.randrange(1, 200)


def shuffle(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Swap two pieces."""
    size = rng.randrange(1, 1 + max(1, len(data) // 4))
    first, second = (rng.randrange(max(1, len(data) - size)) for _ in range(2))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )


def noise(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Insert random bytes anywhere, or at the end."""
    place = rng.choice((rng.randrange(len(data)), len(data)))
    data[place:place] = rng.randbytes(rng.randrange(1, 4096))


def splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Replace the end of the file, from a random place on, by the end of another file."""
    other = rng.choice(others)
    place = rng.randrange(1, len(data) + 1)
    data[place:] = other[rng.randrange(len(other)) :]


DAMAGES: dict[str, Damage] = {
    kind.__name__: kind
    for kind in (
        flip_bits, flip_header_bits, truncate, behead, lie, lie_anywhere, hole, cut_out, repeat, shuffle, noise, splice,
    )
}  # fmt: skip


def damaged(data: bytes, rng: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    """Damage `data` with one of the functions in `DAMAGES`, or sometimes with two of them. Returns the names of these
    functions, and the damaged data.
    """
    result = bytearray(data)
    names = rng.sample(list(DAMAGES), 2 if rng.random() < 0.2 else 1)
    for name in names:
        if result:
            DAMAGES[name](result, rng, others)
    return "+".join(names), bytes(result) or b"\0"
