"""Tests the reader of forms: values of any content in pieces of any size, and the error for each malformed form."""

from __future__ import annotations

import random
import re
import tracemalloc

import aiohttp
import pytest

from gateway.bodies.multipart import (
    LONGEST_BOUNDARY,
    LONGEST_NAME,
    MOST_HEAD_BYTES,
    MOST_PARTS,
    MOST_PREAMBLE_BYTES,
    FormReader,
    Room,
)
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request

HEADER = "multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
FORM = FIELD + b"1\r\n--b--\r\n"


def read(data: bytes, *, header: str = HEADER, most: int = 1 << 20, pieces: int = 1 << 16) -> list[tuple[str, bytes]]:
    reader = FormReader(header, lambda name: Room(most, "too_large"))
    for begin in range(0, len(data), pieces):
        reader.feed(data[begin : begin + pieces])
    assert reader.size == len(data)
    return [(part.name, bytes(part.content)) for part in reader.finish()]


def refusal(data: bytes, **options) -> ErrorInfo:
    with pytest.raises(OmniError) as caught:
        read(data, **options)
    return caught.value.info


def outcome(data: bytes, pieces: int) -> list[tuple[str, bytes]] | ErrorInfo:
    try:
        return read(data, pieces=pieces)
    except OmniError as error:
        return error.info


def form(values: list[tuple[str, bytes]], boundary: str) -> bytes:
    head = 'Content-Disposition: form-data; name="{}"; filename="x.wav"\r\nContent-Type: audio/wav'
    parts = [f"--{boundary}\r\n{head.format(name)}\r\n\r\n".encode() + value for name, value in values]
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])


@pytest.mark.parametrize("seed", range(8))
def test_values_are_the_same_in_pieces_of_any_size(seed):
    rng = random.Random(seed)
    boundary = "".join(rng.choices("-b", k=rng.randint(1, 6))).strip() or "b"
    # Values that consist of parts of boundaries, but contain no boundary.
    alphabet = [b"\r\n", b"\r", b"\n", b"-", b"--", b"b", b"\0\xff"]
    values = [(f"f{index}", b"".join(rng.choices(alphabet, k=rng.randint(0, 40)))) for index in range(6)]
    values = [(name, value) for name, value in values if f"\r\n--{boundary}".encode() not in b"\r\n" + value + b"\r\n"]
    data = form(values, boundary)
    for pieces in (1, 2, 3, 7, 64, 1 << 16):
        assert read(data, header=f"multipart/form-data; boundary={boundary}", pieces=pieces) == values


async def test_a_form_of_a_client_library_is_read():
    writer = aiohttp.FormData({"model": "é", "prompt": ""}, default_to_multipart=True)
    writer.add_field("file", b"\r\n--\r\n", filename='é "1".wav', content_type="audio/wav")
    body = writer()
    data = await body.as_bytes()
    values = [("model", "é".encode()), ("prompt", b""), ("file", b"\r\n--\r\n")]
    assert read(data, header=body.headers["Content-Type"]) == values


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" + FORM,
        b"x" * MOST_PREAMBLE_BYTES + b"\r\n" + FORM,
        FORM[:-2],
        FORM + b"an epilogue\r\n--b\r\n",
        FORM.replace(b"--b\r\n", b"--b \t\r\n", 1),
        FORM.replace(b"Content-Disposition", b"content-disposition"),
        FORM.replace(b'name="a"', b"name=a"),
        FORM.replace(b'name="a"', b'NAME = "a"; name="b"'),
        FORM.replace(b"; name", b";\r\n name"),
        FORM.replace(b'name="a"', b'filename="\xe9.wav"; name="a"'),
        FORM.replace(b'"a"\r\n', b'"a"\r\nContent-Transfer-Encoding: Binary\r\n'),
        FORM.replace(b'"a"\r\n', b'"a"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 77\r\n'),
    ],
)
@pytest.mark.parametrize("pieces", [1, 1 << 16])
def test_all_spellings_of_a_form_are_read(data, pieces):
    assert read(data, pieces=pieces) == [("a", b"1")]


def test_a_form_may_have_no_field():
    assert read(b"--b--\r\n") == []


@pytest.mark.parametrize(
    ("name", "read_as"), [(r"a\"b", 'a"b'), ("a%22b", "a%22b"), ("é", "é"), ("include[]", "include[]")]
)
def test_names_are_read(name, read_as):
    assert read(FORM.replace(b'"a"', f'"{name}"'.encode())) == [(read_as, b"1")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the boundary .* does not occur"),
        (b"--c\r\n", "does not occur"),
        (FORM.replace(b"\r\n", b"\n"), "does not end with CR LF"),
        (b"x" * (MOST_PREAMBLE_BYTES + 20), "does not begin with the boundary"),
        (b"x" * (MOST_PREAMBLE_BYTES + 1) + b"\r\n" + FORM, "does not begin with the boundary"),
        (b"--bb\r\n", "contains other text"),
        (b"--b" + b" " * 100, "contains other text"),
        (b"--b", "ends too early, after part 0"),
        (b"--b-", "ends too early, after part 0"),
        (b"--b\r\nContent-Disp", "ends too early, after part 0"),
        (FIELD, "no boundary follows the value of 'a'"),
        (FIELD + b"1\r\n--", "no boundary follows the value of 'a'"),
        (FIELD + b"1\r\n--b", "ends too early, after part 1"),
        (FIELD + b"1\r\n--b\r\n", "ends too early, after part 1"),
        (b"--b\r\n\r\n1\r\n--b--", "Part 1 of the form has no field name"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\n1\r\n--b--", "has no field name"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--", "has no field name"),
        (FORM.replace(b"form-data", b"attachment"), "has no field name"),
        (FORM.replace(b'"a"', b'""'), "has no field name"),
        (FORM.replace(b'"a"', b'"a'), "has no field name"),
        (FORM.replace(b'"a"', b'"\0"'), "has no field name"),
        (FORM.replace(b'"a"', b'"' + b"a" * (LONGEST_NAME + 1) + b'"'), "has no field name"),
        (FORM.replace(b'"a"\r\n', b'"a"\r\nhello\r\n'), "line without a colon"),
        (
            FORM.replace(b'"a"\r\n', b'"a"\r\nContent-Transfer-Encoding: base64\r\n'),
            "has a 'Content-Transfer-Encoding'",
        ),
        (b"--b\r\n" + b"x" * (MOST_HEAD_BYTES + 10), "headers of part 1 are longer"),
        (FIELD + b"1\r\n--b\r\nX: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n", "headers of part 2 are longer"),
        ((FIELD + b"1\r\n") * (MOST_PARTS + 1) + b"--b--", f"more than {MOST_PARTS} parts"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 1 << 16])
def test_a_malformed_form_is_refused(data, message, pieces):
    info = refusal(data, pieces=pieces)
    assert (info.status, info.code) == (400, "invalid_multipart")
    assert re.search(message, info.message)


@pytest.mark.parametrize(
    "header",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="b "',
        'multipart/form-data; boundary="b\x00"',
        "multipart/form-data; boundary=" + "b" * (LONGEST_BOUNDARY + 1),
    ],
)
def test_a_header_without_a_usable_boundary_is_refused(header):
    assert refusal(FORM, header=header).code == "invalid_multipart"


def test_a_boundary_may_be_quoted():
    data = FORM.replace(b"--b", b"--a b=")
    assert read(data, header='Multipart/Form-Data; charset=utf-8; Boundary="a b="') == [("a", b"1")]


def test_as_many_parts_as_allowed_are_read():
    assert len(read((FIELD + b"1\r\n") * MOST_PARTS + b"--b--")) == MOST_PARTS


@pytest.mark.parametrize("pieces", [1, 10, 1 << 16])
def test_a_value_beyond_its_room_is_refused(pieces):
    data = FIELD + b"x" * 100 + b"\r\n--b--"
    assert read(data, most=100, pieces=pieces) == [("a", b"x" * 100)]
    info = refusal(data, most=99, pieces=pieces)
    assert (info.status, info.code, info.param) == (413, "too_large", "a")


def test_a_field_can_be_refused_before_its_value_arrives():
    def room(name: str) -> Room:
        raise bad_request("no", param=name)

    reader = FormReader(HEADER, room)
    with pytest.raises(OmniError) as caught:
        reader.feed(FIELD)
    assert caught.value.info.param == "a"


def test_nothing_but_values_is_kept():
    reader = FormReader(HEADER, lambda name: Room(1 << 30, "too_large"))
    reader.feed(FORM)
    epilogue = b"x" * (1 << 20)
    tracemalloc.start()
    for _ in range(20):
        reader.feed(epilogue)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 16


@pytest.mark.parametrize("seed", range(200))
def test_damaged_forms_are_read_or_refused(seed):
    rng = random.Random(seed)
    data = bytearray(form([("a", b"1" * 50), ("file", rng.randbytes(200)), ("c", b"")], "b"))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                del data[at : at + rng.randint(1, 30)]
            case 1:
                data[at] = rng.choice(b'\r\n-b:;="\\ \0\xff')
            case 2:
                data[at:at] = rng.choice([b"\r\n", b"--b", b"\r\n--b", b"\r\n\r\n", b"--", b'"', data[: at // 2]])
            case 3:
                del data[at:]
                data += b"x"
    whole, *in_pieces = (outcome(bytes(data), pieces) for pieces in (1 << 16, 3, 1))
    assert isinstance(whole, list) or whole.status == 400
    assert all(other == whole for other in in_pieces)
