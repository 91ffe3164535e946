"""Tests the reader of JSON bodies for pieces of any size: which values it counts, which bodies it refuses, and which
strings it stores separately.
"""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from gateway.bodies.reader import DEPTH, EXTREME_NUMBERS, LONG_STRING, LONGEST_NUMBER, JsonBodyReader
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import OmniError
from tests.gateway.json_bodies import read

LONG = "é/+\\\"'\n" * (LONG_STRING // 6)


def refusal(data: bytes, **limits) -> tuple[int, str | None]:
    with pytest.raises(OmniError) as caught:
        read(data, Limits(**limits))
    return caught.value.info.status, caught.value.info.code


def whole(body) -> bytes:
    body.restore(set(body.strings))
    return body.outline


def random_json(rng: random.Random, depth: int = 0):
    kind = rng.randrange(7 if depth < 4 else 5)
    if kind < 3:
        alphabet = rng.choice(['ab"\\[]{},: \n', "é\U0001f600x", "AAAA"])
        length = rng.choice([0, 1, 5, LONG_STRING - 1, LONG_STRING, 3 * LONG_STRING] if kind else [0, 1, 2, 9])
        return "".join(rng.choices(alphabet, k=length))
    if kind < 5:
        return rng.choice([None, True, 0, -1.5e300])
    items = [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind == 5 else {str(index) + '"\\': item for index, item in enumerate(items)}


@pytest.mark.parametrize("seed", range(6))
def test_a_body_is_the_same_in_pieces_of_any_size(seed):
    rng = random.Random(seed)
    data = json.dumps([random_json(rng) for _ in range(6)], ensure_ascii=bool(seed % 2)).encode()
    contents = [string.content for string in read(data).strings.values()]
    assert all(len(content) >= LONG_STRING for content in contents)
    for pieces in (1, 7, 4096, LONG_STRING, LONG_STRING + 1):
        body = read(data, pieces=pieces)
        assert [string.content for string in body.strings.values()] == contents
        assert len(body.outline) < len(data) - sum(map(len, contents)) + 40 * (len(contents) + 1)
        assert whole(body) == data


@pytest.mark.parametrize("pieces", [1, 5, 1 << 20])
@pytest.mark.parametrize("end", [b'"', b"", b"\\", b'\\"'])
def test_a_long_string_is_kept_even_if_it_does_not_end(pieces, end):
    data = b'{"a": "' + b"x" * LONG_STRING + end
    body = read(data, pieces=pieces)
    [string] = body.strings.values()
    assert string.content.startswith(b"x" * LONG_STRING)
    assert whole(body) == data


# Each entry is a function that makes a body with `n` items, and the number of JSON values that one item has.
VALUES = [
    (lambda n: [0] * n, 1),
    (lambda n: [[]] * n, 2),
    (lambda n: [{}] * n, 2),
    (lambda n: [{"a": 1}] * n, 2),
    (lambda n: {str(index): None for index in range(n)}, 1),
    (lambda n: ['[{,\\"]}'] * n, 1),
    (lambda n: [LONG] * (n // 100), 0.01),
]


@pytest.mark.parametrize(("make", "each"), VALUES)
@pytest.mark.parametrize("pieces", [3, 1 << 20])
def test_values_are_counted_at_all_levels_and_not_in_strings(make, each, pieces):
    data = json.dumps(make(300)).encode()
    most = int(300 * each)
    read(data, Limits(body_values=most), pieces=pieces)
    assert refusal(data, body_values=most - 1) == (400, "too_many_values")


@pytest.mark.parametrize("pieces", [1, 3, 1 << 20])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"[[":', b"}"), (b'["]]",', b"]")])
def test_depth_is_bounded(opening, closing, pieces):
    def nest(depth: int) -> bytes:
        return opening * depth + b"1" + closing * depth

    read(nest(DEPTH), pieces=pieces)
    read(b"[" + b",".join([nest(DEPTH - 1)] * 9) + b"]", pieces=pieces)
    with pytest.raises(OmniError) as caught:
        read(nest(DEPTH + 1), pieces=pieces)
    assert (caught.value.info.status, caught.value.info.code) == (400, "invalid_json")


@pytest.mark.parametrize("pieces", [1, 100, 1 << 20])
@pytest.mark.parametrize("start", [b"", b"-", b"0.", b"1e", b"-1.5E+"])
def test_the_length_of_a_number_is_bounded(start, pieces):
    def numbers(length: int) -> bytes:
        return b'["9", ' + start + b"9" * (length - len(start)) + b', "' + b"9" * 1000 + b'"]'

    read(numbers(LONGEST_NUMBER), pieces=pieces)
    with pytest.raises(OmniError) as caught:
        read(numbers(LONGEST_NUMBER + 1), pieces=pieces)
    assert (caught.value.info.status, caught.value.info.code) == (400, "invalid_json")


@pytest.mark.parametrize("number", [b"1e308", b"5E-324", b"1.5e+0000", b"1e400"])
def test_numbers_that_are_slow_to_decode_are_bounded(number):
    read(b"[" + b",".join([number] * EXTREME_NUMBERS) + b"]", pieces=1)
    read(b'["' + b",".join([number] * 1000) + b'"' + b",1e-05,true,false" * 1000 + b"]")
    for pieces in (1, 3, 1 << 20):
        with pytest.raises(OmniError) as caught:
            read(b"[" + b",".join([number] * (EXTREME_NUMBERS + 1)) + b"]", pieces=pieces)
        assert (caught.value.info.status, caught.value.info.code) == (400, "too_many_values")


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"[", b'{"a":', b'"",', b'{"a":1},', b"1,", b" ", b"1", b"]", b'""'])
def test_an_endless_body_is_refused_long_before_it_is_read(unit):
    limits = Limits(body_values=1000, text_bytes=100_000)
    reader = JsonBodyReader(limits)
    piece = unit * (8192 // len(unit))

    def feed_for_ever() -> None:
        while True:
            reader.feed(piece)

    with pytest.raises(OmniError):
        feed_for_ever()
    assert reader.size <= limits.text_bytes + len(piece)


def test_only_text_counts_as_text():
    media = json.dumps({"a": "A" * 500_000, "b": "é" * 2000}).encode()
    text = len(media) - 500_000 + 40  # the marker that replaces a long string is shorter than 40 bytes
    read(media, Limits(text_bytes=text))
    assert refusal(media, text_bytes=text - 60) == (413, "text_too_large")


async def test_the_event_loop_runs_while_a_large_piece_is_read():
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    await JsonBodyReader(Limits()).receive(b'"' + b"x" * (1 << 20))
    counting.cancel()
    assert turns >= 30  # the body has about this many slices of 32 KiB
