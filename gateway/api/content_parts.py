"""Finds the media item in a content part. Supports all forms of parts that clients use."""

from __future__ import annotations

import re

from msgspec import Struct

from gateway.api import schema
from gateway.bodies.json_body import LongString
from stages.messages import Modality

_LONGEST_SCHEME = 32
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")


class PartMedium(Struct, frozen=True):
    """The media item of a part.

    Attributes:
        kind: Modality that the part names; None if the modality is detected from the file itself.
        value: Address of the item, or base64 of its file.
        field: Path of the value within the part.
        may_be_base64: Whether the value may be base64. If True, the value is base64, unless it begins like an address.
        frames: Addresses of the pictures, if the item is a clip that is sent as a list of pictures. In this case,
            `value` is empty. In all other cases, `frames` is empty.
    """

    kind: Modality | None
    value: str
    field: str
    may_be_base64: bool = False
    frames: tuple[str, ...] = ()


def medium_in(part: schema.Part) -> PartMedium | None:
    """The media item of a part; None if the part is text."""
    match part:
        case schema.ImagePart(image_url=address) | schema.InputImagePart(image_url=address):
            return _at("image", address, "image_url")
        case schema.AudioPart(audio_url=address):
            return _at("audio", address, "audio_url")
        case schema.VideoPart(video_url=address):
            return _at("video", address, "video_url")
        case schema.QwenImagePart(image=address):
            return _at("image", address, "image")
        case schema.QwenAudioPart(audio=address):
            return _at("audio", address, "audio")
        case schema.QwenVideoPart(video=str() as address):
            return _at("video", address, "video")
        case schema.QwenVideoPart(video=addresses):
            return PartMedium("video", "", "video", frames=tuple(addresses))
        case schema.InputAudioPart(input_audio=sound):
            return PartMedium("audio", sound.data, "input_audio.data", may_be_base64=True)
        case schema.FilePart(file=file):
            return PartMedium(None, file.file_data, "file.file_data", may_be_base64=True)
    return None


def _at(kind: Modality, address: schema.Address | str, field: str) -> PartMedium:
    if isinstance(address, str):
        return PartMedium(kind, address, field)
    return PartMedium(kind, address.url, f"{field}.url")


def has_scheme(value: str | LongString) -> bool:
    """Whether a value begins like a URL. A base64 text never begins like a URL, because it contains no colon."""
    return _SCHEME.match(start_of(value, _LONGEST_SCHEME)) is not None


def start_of(value: str | LongString, length: int) -> str:
    """The first characters of a value, as the client sent them."""
    return value[:length] if isinstance(value, str) else value.content[:length].decode("latin-1")
