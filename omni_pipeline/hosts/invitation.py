"""The invitation: a line of text with which a host can join the service once.

The invitation contains the address and the public key of the main process, the name of the host, and a secret token.
The public key proves to the host that it talks to the right server. The token proves to the server that the host may
join.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from msgspec import Struct

from omni_pipeline.errors import StartupError

_PREFIX = "sgl-omni-host-1:"
"""The text at the beginning of every invitation. The number is the version of the invitation's format."""


class Invitation(Struct, frozen=True):
    """The content of an invitation.

    Attributes:
        address: Endpoint at which the main process waits for hosts, such as ``tcp://10.0.0.1:20000``.
        server_key: Public key of the main process.
        host: Name of the host that is invited.
        token: A secret that is valid for one join.
    """

    address: str
    server_key: str
    host: str
    token: str

    def __repr__(self) -> str:
        """A description without the token."""
        return f"Invitation(address={self.address!r}, host={self.host!r})"

    def text(self) -> str:
        """The invitation as a line of text, without the end of the line."""
        return _PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


def read_invitation(text: str) -> Invitation:
    """The invitation in a text. Raises StartupError if the text is not an invitation."""
    line = text.strip()
    encoded = line.removeprefix(_PREFIX)
    try:
        if encoded == line:
            raise ValueError("wrong beginning")
        return msgspec.msgpack.decode(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=Invitation)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise StartupError(
            "The text is not an invitation, or a part of it is missing: pass the complete line that "
            "`sgl-omni invite HOST` prints on the server's host."
        ) from error
