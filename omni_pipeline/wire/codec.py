"""Converts messages to ZeroMQ frames and back.

Each tensor inside a body becomes a separate raw frame. So no tensor data is pickled, converted to base64 or copied:

    frame 0   msgpack of the message; a tensor in it is [frame number, dtype, shape]
    frame 1…  the bytes of each tensor, in order

Between stages of one worker, messages are passed as objects, without this module.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import msgspec

from omni_pipeline.wire.messages import (
    Abort,
    Advice,
    Chunk,
    Claim,
    Control,
    End,
    Failed,
    Forgotten,
    Granted,
    Message,
    Paused,
    Start,
    Work,
)
from omni_pipeline.wire.tensor import Buffer, Tensor

_NIL = msgspec.msgpack.encode(None)
_Carrier: TypeAlias = Start[msgspec.Raw] | Chunk[msgspec.Raw] | End[msgspec.Raw] | Advice[msgspec.Raw]
_Undecoded: TypeAlias = _Carrier | Abort | Forgotten | Claim | Paused | Granted | Failed | Control


class WireError(Exception):
    """Raised for frames that are not a message, or for a body whose type is wrong for its edge.

    `request_id` is the id of the request that cannot continue, if the id could be read from the frames.
    """

    def __init__(self, reason: str, request_id: str | None = None) -> None:
        super().__init__(reason)
        self.request_id = request_id


class Codec:
    """Converts messages to frames and back. A codec keeps state during a call, so each thread needs its own codec.

    Args:
        body_types: For each edge ``(source, target)``, the struct type (or union of tagged structs) of its bodies.
        advice_types: For each pair of stages ``(source, target)``, the type of the bodies of `Advice`.
    """

    def __init__(
        self, body_types: dict[tuple[str, str], Any], advice_types: dict[tuple[str, str], Any] | None = None
    ) -> None:
        self._frames: list[memoryview] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._lift)
        self._decoder = msgspec.msgpack.Decoder(_Undecoded)
        self._received: Sequence[Buffer] = ()
        self._bodies = {edge: msgspec.msgpack.Decoder(body, dec_hook=self._lower) for edge, body in body_types.items()}
        self._advice = {pair: msgspec.msgpack.Decoder(body) for pair, body in (advice_types or {}).items()}

    @property
    def edges(self) -> Collection[tuple[str, str]]:
        """The edges ``(source, target)`` whose messages can be encoded and decoded."""
        return self._bodies.keys()

    def encode(self, message: Message) -> list[Buffer]:
        """The frames of a message. The frames share memory with the message's tensors. So the tensors must not change
        before the frames are sent.
        """
        self._frames = []
        try:
            return [self._encoder.encode(message), *self._frames]
        finally:
            self._frames = []

    def decode(self, frames: Sequence[Buffer]) -> Message:
        """The message in `frames`. The tensors of the message are views of the frames.

        Raises:
            WireError: the frames are not a message, or the body does not fit the edge that the message names.
        """
        if not frames:
            raise WireError("no frames")
        try:
            message = self._decoder.decode(frames[0])
        except msgspec.MsgspecError as error:
            raise WireError(str(error)) from error
        if isinstance(message, (Start, Chunk, End)):
            message.body = self._decode_body(message, frames)
        elif isinstance(message, Advice):
            message.body = self._decode_advice(message)
        return message

    def _decode_body(self, message: Work, frames: Sequence[Buffer]) -> Any:
        if memoryview(message.body) == _NIL:
            return None
        edge = f"{message.source} → {message.target}"
        decoder = self._bodies.get((message.source, message.target))
        if decoder is None:
            raise WireError(f"no edge {edge}", message.request_id)
        self._received = frames
        try:
            return decoder.decode(message.body)
        except msgspec.MsgspecError as error:
            raise WireError(f"{edge}: {error}", message.request_id) from error
        finally:
            self._received = ()

    def _decode_advice(self, message: Advice[msgspec.Raw]) -> Any:
        decoder = self._advice.get((message.source, message.target))
        if decoder is None:
            raise WireError(f"no advice {message.source} → {message.target}")
        try:
            return decoder.decode(message.body)
        except msgspec.MsgspecError as error:
            raise WireError(f"advice {message.source} → {message.target}: {error}") from error

    def _lift(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._frames.append(value.buffer())
            return [len(self._frames), value.dtype, value.shape]
        raise NotImplementedError(f"a {type(value).__name__} cannot be sent")

    def _lower(self, kind: type, value: Any) -> Any:
        if kind is not Tensor:
            raise NotImplementedError(f"a {kind.__name__} cannot be received")
        try:
            number, dtype, shape = value
            source = memoryview(self._received[number]).cast("B")
            tensor = Tensor(source, dtype, tuple(shape))
            fits = number > 0 and source.nbytes == tensor.nbytes
        except (TypeError, ValueError, LookupError) as error:
            raise msgspec.ValidationError(f"not a tensor: {value!r}") from error
        if not fits:
            raise msgspec.ValidationError(f"{tensor!r} does not fit a frame of {source.nbytes} bytes")
        return tensor
