"""Key pairs that identify the hosts of a service, and that encrypt the messages between them."""

from __future__ import annotations

from typing import Any

import zmq
from msgspec import Struct

# Characters of a key. A key has 32 bytes, and z85 writes 4 bytes as 5 characters.
KEY_CHARACTERS = 40


class KeyPair(Struct, frozen=True):
    """A CURVE key pair as z85 text. The `repr` of a key pair leaves out `secret`, because logs and error messages
    contain the `repr` of objects.

    Attributes:
        public: The key that other hosts know.
        secret: The key that never leaves the host.
    """

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("public", self.public)]


def new_key_pair() -> KeyPair:
    """A new random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())
