"""Reads the bytes of each token of a checkpoint's byte-level BPE tokenizer."""

from __future__ import annotations

from typing import Any


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The UTF-8 bytes of each token by id, from a Hugging Face tokenizer; None for an id without a token.

    The bytes of a token may be a part of a character.
    """
    alphabet = _byte_alphabet()
    added = tokenizer.added_tokens_decoder
    vocabulary = tokenizer.get_vocab()
    pieces: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index in added:
            pieces[index] = added[index].content.encode()
        else:
            pieces[index] = bytes(alphabet[character] for character in token)
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """Maps each character of byte-level BPE to the byte that it represents. Characters from U+0100 on represent bytes
    that are not printable.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(rest)})
    return alphabet
