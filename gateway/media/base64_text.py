"""Decodes base64 piece by piece, in all forms that clients send, and refuses everything else."""

from __future__ import annotations

import binascii

_WHITE = b" \t\r\n"  # these bytes may occur anywhere
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_GROUP = 4
_BYTES_OF_GROUP = 3
_MOST_PADDING = 2


def encoded_size(characters: int) -> int:
    """The number of bytes that a base64 text encodes. `characters` is the number of characters of the text."""
    return max(characters, 0) * _BYTES_OF_GROUP // _GROUP


class Base64Decoder:
    """Decodes the characters of one file. Accepts the standard and the URL-safe alphabet, with or without padding."""

    def __init__(self) -> None:
        self._rest = b""  # the characters of an incomplete group
        self._padded = False

    def decode(self, characters: str | bytes | bytearray) -> bytes:
        """The next bytes of the file. Raises ValueError if the characters are not base64."""
        if isinstance(characters, str):
            characters = characters.encode("ascii")
        text = self._rest + characters.translate(_URL_SAFE, _WHITE)
        whole = len(text) - len(text) % _GROUP
        self._rest = bytes(text[whole:])
        return self._bytes_of(bytes(text[:whole]))

    def finish(self) -> bytes:
        """The last bytes, if the padding was left out. Raises ValueError if the base64 is incomplete."""
        if b"=" in self._rest:
            raise ValueError("The padding is incomplete.")
        rest, self._rest = self._rest, b""
        return self._bytes_of(rest + b"=" * (-len(rest) % _GROUP))

    def _bytes_of(self, text: bytes) -> bytes:
        """Decode base64 text that consists of complete groups of four characters."""
        if not text:
            return b""
        if self._padded:
            raise ValueError("There is data after the padding.")
        padding = len(text) - len(text.rstrip(b"="))
        self._padded = padding > 0
        decoded = binascii.a2b_base64(text, strict_mode=True)
        if padding > _MOST_PADDING or len(decoded) != len(text) // _GROUP * _BYTES_OF_GROUP - padding:
            raise ValueError("There is padding within the data.")
        return decoded
