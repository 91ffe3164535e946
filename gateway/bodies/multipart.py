"""Reads the body of a form (`multipart/form-data`, RFC 7578) piece by piece, within limits.

Only the values of the fields are kept. Everything else is checked and dropped as it arrives. So the memory holds the
values, and at most the head of one part. aiohttp's own reader of forms is not used for two reasons: that reader stores
the first line even if it is very long, and its errors do not contain the number of the wrong part.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from msgspec import Struct, field

from omni_pipeline.errors import OmniError, bad_request

MOST_PARTS = 64
"""Maximum number of parts of one form. A request for a transcript has about ten."""
MOST_HEAD_BYTES = 8192
"""Maximum size of the head of one part."""
LONGEST_NAME = 100
"""Maximum number of characters of the name of a field."""
LONGEST_BOUNDARY = 70
"""Maximum number of characters of the boundary, as in RFC 2046."""
MOST_PREAMBLE_BYTES = 1024
"""Maximum number of bytes before the first boundary. These bytes are skipped."""
# Maximum number of spaces after a boundary.
_LONGEST_PADDING = 64

_PARAMETER = re.compile(r';[ \t\r\n]*([A-Za-z0-9_*-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]*[0-9A-Za-z'()+_,\-./:=?]")
# The transfer encodings that leave the bytes as they are. RFC 7578 forbids all others.
_PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


class Part(Struct):
    """One field of a form.

    Attributes:
        name: Name of the field.
        content: Value of the field: text in UTF-8, or a file.
    """

    name: str
    content: bytearray = field(default_factory=bytearray)


class Room(Struct, frozen=True):
    """The maximum size of a field's value, and the error for a larger value.

    Attributes:
        bytes: Maximum size.
        code: Code of the error for a larger value.
    """

    bytes: int
    code: str


class _Place(enum.Enum):
    """The position that the reader has reached in the form."""

    PREAMBLE = enum.auto()
    AFTER_BOUNDARY = enum.auto()
    HEAD = enum.auto()
    CONTENT = enum.auto()
    EPILOGUE = enum.auto()


class FormReader:
    """Reads the pieces of one form.

    Args:
        content_type: The `Content-Type` header of the request.
        room: Called with the name of a field, as soon as the head of the field's part has arrived. Returns the `Room`
            for the value of the field, or raises OmniError to refuse the field.

    Raises:
        OmniError: 400 ``invalid_multipart`` if `content_type` has no usable boundary.

    Attributes:
        size: Number of bytes that have been read so far.
    """

    def __init__(self, content_type: str, room: Callable[[str], Room]) -> None:
        boundary = _parameters(content_type).get("boundary", "")
        if len(boundary) > LONGEST_BOUNDARY or not _BOUNDARY.fullmatch(boundary):
            raise _invalid(f"The header 'Content-Type' has no boundary of 1 to {LONGEST_BOUNDARY} plain characters.")
        self.size = 0
        self._parts: list[Part] = []
        self._room = room
        self._space = Room(0, "")
        # A boundary is always at the beginning of a line. The first line of the body has no line break before it, so
        # `_rest` begins with a line break.
        self._delimiter = b"\r\n--" + boundary.encode()
        self._rest = bytearray(b"\r\n")  # received bytes that have not been consumed yet
        self._place = _Place.PREAMBLE

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            OmniError: 400 ``invalid_multipart`` if the form is malformed or has too many parts; 413 if a value is
                larger than its `Room` allows; any error that `room` raises.
        """
        self.size += len(data)
        self._rest += data
        while self._consume():
            pass

    def finish(self) -> list[Part]:
        """The fields of the complete form, in order. Raises OmniError (400) if the form is not complete."""
        if self._place is _Place.EPILOGUE:
            return self._parts
        if self._place is _Place.PREAMBLE:
            raise _invalid("The form is empty: the boundary from the header 'Content-Type' does not occur in the body.")
        if self._place is _Place.CONTENT:
            name = self._parts[-1].name
            raise _invalid(f"The form is incomplete: no boundary follows the value of '{name}'.", name)
        raise _invalid(f"The form ends too early, after part {len(self._parts)}.")

    def _consume(self) -> bool:
        """Consume received bytes up to the next change of `_Place`. Returns False if more bytes are needed."""
        match self._place:
            case _Place.PREAMBLE:
                return self._skip_preamble()
            case _Place.AFTER_BOUNDARY:
                return self._end_boundary()
            case _Place.HEAD:
                return self._read_head()
            case _Place.CONTENT:
                return self._read_content()
            case _Place.EPILOGUE:
                self._rest.clear()
                return False

    def _skip_preamble(self) -> bool:
        at = self._rest.find(self._delimiter)
        length = (at if at >= 0 else len(self._rest) - len(self._delimiter)) - len(b"\r\n")
        if length > MOST_PREAMBLE_BYTES:
            raise _invalid("The form does not begin with the boundary from the header 'Content-Type'.")
        return self._pass_boundary(at)

    def _end_boundary(self) -> bool:
        """Read the rest of the line after a boundary. The rest of the line shows whether another part follows."""
        if self._rest.startswith(b"--"):
            self._place = _Place.EPILOGUE
            return True
        end = self._rest.find(b"\r\n", 0, _LONGEST_PADDING + 2)
        # If the line is not complete yet, leave out its last byte, which may be the first half of a line break or of
        # the two dashes.
        padding = self._rest[: end if end >= 0 else -1]
        if padding.strip(b" \t") or len(padding) > _LONGEST_PADDING:
            raise _invalid("A line that begins with the boundary contains other text, or does not end with CR LF.")
        if end < 0:
            return False
        if len(self._parts) == MOST_PARTS:
            raise _invalid(f"The form has more than {MOST_PARTS} parts.")
        del self._rest[:end]  # keeps the line break, so that an empty head ends with two line breaks like other heads
        self._place = _Place.HEAD
        return True

    def _read_head(self) -> bool:
        end = self._rest.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES + 4)
        if end < 0 and len(self._rest) >= MOST_HEAD_BYTES + 4:
            raise _invalid(f"The headers of part {len(self._parts) + 1} are longer than {MOST_HEAD_BYTES} bytes.")
        if end < 0:
            return False
        name = _name_in(bytes(self._rest[:end]), len(self._parts) + 1)
        self._space = self._room(name)
        self._parts.append(Part(name))
        del self._rest[: end + 4]
        self._place = _Place.CONTENT
        return True

    def _read_content(self) -> bool:
        part = self._parts[-1]
        at = self._rest.find(self._delimiter)
        # Keep the last bytes, because they may be the beginning of a boundary.
        ready = at if at >= 0 else max(len(self._rest) - len(self._delimiter) + 1, 0)
        if len(part.content) + ready > self._space.bytes:
            raise bad_request(
                f"'{part.name}' is larger than the {self._space.bytes} bytes that are allowed for it.",
                param=part.name,
                code=self._space.code,
                status=413,
            )
        with memoryview(self._rest) as received, received[:ready] as content:
            part.content += content
        if at < 0:
            del self._rest[:ready]
        return self._pass_boundary(at)

    def _pass_boundary(self, at: int) -> bool:
        """Consume everything up to the end of the boundary at this position, if there is one."""
        if at < 0:
            return False
        del self._rest[: at + len(self._delimiter)]
        self._place = _Place.AFTER_BOUNDARY
        return True


def _name_in(head: bytes, number: int) -> str:
    """The name of the form field in the headers of a part.

    Args:
        head: The lines of the head. There is a line break before each line.
        number: Number of the part, counted from 1, for errors.

    Raises:
        OmniError: 400 if the head contains no name of a field, or contains an encoding that changes the bytes.
    """
    text = head.decode("utf-8", "replace")  # old clients send file names in other encodings
    disposition, encoding = "", ""
    for line in re.sub(r"\r\n[ \t]+", " ", text).split("\r\n")[1:]:
        header, colon, value = line.partition(":")
        if not colon:
            raise _invalid(f"The headers of part {number} contain a line without a colon.")
        match header.strip().lower():
            case "content-disposition":
                disposition = value.strip()
            case "content-transfer-encoding":
                encoding = value.strip().lower()
    name = _parameters(disposition).get("name", "")
    if not disposition.lower().startswith("form-data") or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise _invalid(
            f"Part {number} of the form has no field name. The part needs a header "
            f"'Content-Disposition: form-data; name=\"…\"', and the name must have 1 to {LONGEST_NAME} characters."
        )
    if encoding not in _PLAIN_ENCODINGS:
        raise _invalid(f"'{name}' has a 'Content-Transfer-Encoding'; send the plain bytes without this header.", name)
    return name


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header such as ``form-data; name="a"``, keyed by the name in lower case. If a name occurs
    twice, the first one counts.
    """
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(header):
        found.setdefault(name.lower(), plain or _ESCAPED.sub(r"\1", quoted))
    return found


def _invalid(message: str, param: str | None = None) -> OmniError:
    return bad_request(message, param=param, code="invalid_multipart")
