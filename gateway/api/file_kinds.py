"""Finds out whether the file in a `file` part is a picture, a sound or a clip, before the file is decoded."""

from __future__ import annotations

import binascii
import re

from gateway.api.content_parts import has_scheme, start_of
from gateway.bodies.json_body import LongString
from omni_pipeline.errors import OmniError, bad_request
from stages.messages import Modality

# Maximum number of characters before the comma of a data URL.
_LONGEST_HEAD = 1024
# Number of characters of base64 that are read.
_HEAD = 128
_WHITE = re.compile(r"[ \t\r\n]")
_DATA_URL = re.compile(r"data:([^;,]*)[^,]*,", re.IGNORECASE)
_KINDS: dict[str, Modality] = {"image": "image", "audio": "audio", "video": "video"}

# Each entry has three parts: a position in a file, some bytes, and a kind. A file that has these bytes at this position
# is of this kind.
_MARKS: tuple[tuple[int, bytes, Modality], ...] = (
    (0, b"\x89PNG", "image"),
    (0, b"\xff\xd8\xff", "image"),
    (0, b"GIF8", "image"),
    (0, b"BM", "image"),
    (0, b"II*\0", "image"),
    (0, b"MM\0*", "image"),
    (0, b"\xff\x4f\xff\x51", "image"),
    (4, b"jP  ", "image"),
    (8, b"WEBP", "image"),
    (8, b"WAVE", "audio"),
    (8, b"AIFF", "audio"),
    (8, b"AIFC", "audio"),
    (0, b"fLaC", "audio"),
    (0, b"ID3", "audio"),
    (0, b".snd", "audio"),
    (0, b"caff", "audio"),
    (0, b"riff", "audio"),
    (0, b"#!AMR", "audio"),
    (8, b"AVI ", "video"),
    (0, b"FLV", "video"),
    (0, b"\0\0\x01\xba", "video"),
    (0, b"\0\0\x01\xb3", "video"),
    *((8, brand, "image") for brand in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")),
    *((8, brand, "audio") for brand in (b"M4A ", b"M4B ")),
)
# Formats of container files that may contain a sound or a clip. An entry has the same parts as in `_MARKS`. The kind is
# only a default: if the name of the file shows the kind, the name decides.
_CONTAINERS: tuple[tuple[int, bytes, Modality], ...] = (
    (0, b"OggS", "audio"),
    (0, b"\x1a\x45\xdf\xa3", "video"),
    (0, b"\x30\x26\xb2\x75", "video"),
    (4, b"ftyp", "video"),
)
# Endings of the names of container files, and the kind that each ending shows.
_NAMES: dict[str, Modality] = {
    **dict.fromkeys(("aac", "m4a", "m4b", "mka", "oga", "ogg", "opus", "weba", "wma"), "audio"),
    **dict.fromkeys(("3gp", "m4v", "mkv", "mov", "mp4", "ogv", "webm", "wmv"), "video"),
}


def kind_of_file(value: str | LongString, filename: str | None, param: str) -> Modality:
    """The kind of a file. `value` is base64 or a data URL.

    Raises:
        OmniError: 400 ``unsupported_value`` if the file is not a picture, a sound or a clip, or if `value` is a
            URL but not a data URL.
    """
    head = start_of(value, _LONGEST_HEAD)
    found = _DATA_URL.match(head)
    if found is None and has_scheme(value):
        raise _refused(
            param, "must be base64 or a data URL; send any other URL as 'image_url', 'audio_url' or 'video_url'"
        )
    # Some clients write a slash as `\\/`.
    if found and (named := _KINDS.get(found[1].strip(" ").lower().partition("/")[0].rstrip("\\"))):
        return named
    content = _first_bytes(value, found.end() if found else 0)
    kind: Modality | None = _fits(_MARKS, content) or _raw_sound(content)
    if kind is None and (kind := _fits(_CONTAINERS, content)):
        kind = _NAMES.get((filename or "").lower().rpartition(".")[2], kind)
    if kind is None:
        raise _refused(param, "must be a picture, a sound or a clip; this server does not read other kinds of files")
    return kind


def _first_bytes(value: str | LongString, begin: int) -> bytes:
    if isinstance(value, LongString):
        try:
            text = value.characters(begin, _HEAD)[0].decode("ascii", "replace")
        except ValueError:
            return b""
    else:
        text = value[begin : begin + _HEAD]
    text = _WHITE.sub("", text).replace("-", "+").replace("_", "/").rstrip("=")
    if len(text) % 4 == 1:
        text = text[:-1]
    try:
        return binascii.a2b_base64(text + "==")
    except ValueError:
        return b""


def _fits(marks: tuple[tuple[int, bytes, Modality], ...], content: bytes) -> Modality | None:
    return next((kind for place, mark, kind in marks if content.startswith(mark, place)), None)


def _raw_sound(content: bytes) -> Modality | None:
    """``audio`` if `content` begins with an MPEG audio frame, as in an MP3 file without tags or in an AAC file."""
    return "audio" if len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0 else None


def _refused(param: str, reason: str) -> OmniError:
    return bad_request(f"'{param}' {reason}.", param=param, code="unsupported_value")
