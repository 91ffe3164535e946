"""The messages that pass between processes, and how they become ZeroMQ frames.

Every message is one of the structs below. Those that carry work (`Start`, `Chunk`, `End`) name the edge of the stage
graph they travel on and hold a *body*: a struct whose type belongs to that edge (see `contract.graph.Edge`). Tensors
anywhere inside a body are lifted out as raw frames, so that nothing is pickled, base64-coded or copied:

    frame 0   msgpack of the message; a tensor in it is [frame number, dtype, shape]
    frame 1…  the bytes of each tensor, in order

Between stages of one worker, messages are handed over as they are, without this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Struct, field

from omni_pipeline.errors import ErrorInfo
from omni_pipeline.wire.counters import BATCH_SIZES, STEP_SECONDS, Distribution, EdgeStats
from omni_pipeline.wire.trace_notes import Notes

if TYPE_CHECKING:
    import numpy
    import torch

Buffer: TypeAlias = bytes | bytearray | memoryview
Body = TypeVar("Body")

# Bytes per element, by the name both torch and the wire use.
ITEM_SIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


class Tensor:
    """An n-dimensional array inside a message: a torch tensor, a numpy array or plain bytes, without importing either.

    The array is not copied. In the process that made it, `torch()` returns the very same tensor. In another process it
    returns a view of the received frame, which must be treated as read-only.
    """

    __slots__ = ("_source", "dtype", "shape")

    def __init__(self, source: Any, dtype: str, shape: tuple[int, ...]) -> None:
        self._source = source
        self.dtype = dtype
        self.shape = shape

    @classmethod
    def of(cls, array: torch.Tensor | numpy.ndarray | Buffer) -> Tensor:
        """Wrap a torch tensor (any device), a numpy array, or bytes (as uint8 [n])."""
        if isinstance(array, (bytes, bytearray, memoryview)):
            return cls(array, "uint8", (memoryview(array).nbytes,))
        name = str(array.dtype).removeprefix("torch.")
        if name not in ITEM_SIZE:
            raise TypeError(f"a {name} tensor cannot travel; known: {', '.join(ITEM_SIZE)}")
        return cls(array, name, tuple(array.shape))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    def buffer(self) -> memoryview:
        """The elements as contiguous bytes (moved to the CPU if they are elsewhere)."""
        source = self._source
        if hasattr(source, "untyped_storage"):  # torch.Tensor
            import torch

            flat = source.detach().to("cpu").contiguous().reshape(-1)
            return flat.view(torch.uint8).numpy().data
        if hasattr(source, "__array_interface__"):
            import numpy

            return numpy.ascontiguousarray(source).reshape(-1).view(numpy.uint8).data
        return memoryview(source).cast("B")

    def torch(self) -> torch.Tensor:
        """The elements as a torch tensor; shares memory with the frame they came in."""
        import torch

        if isinstance(self._source, torch.Tensor):
            return self._source
        dtype = getattr(torch, self.dtype)
        data = self.buffer()
        if not data.nbytes:
            return torch.empty(self.shape, dtype=dtype)
        import warnings

        with warnings.catch_warnings():  # torch warns that received bytes are read-only: they are, by contract
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.frombuffer(data, dtype=dtype).reshape(self.shape)

    def numpy(self) -> numpy.ndarray:
        """The elements as a numpy array. Raises TypeError for bfloat16, which numpy lacks."""
        import numpy

        if self.dtype == "bfloat16":  # even if some library has added this type to numpy
            raise TypeError("numpy has no bfloat16")
        if isinstance(self._source, numpy.ndarray):
            return self._source
        return numpy.frombuffer(self.buffer(), dtype=numpy.dtype(self.dtype)).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"


class Start(Struct, Generic[Body], tag="start"):
    """The first message of a request on one edge; on a message edge, the only one."""

    request_id: str
    source: str
    target: str
    body: Body


class Chunk(Struct, Generic[Body], tag="chunk"):
    """One more piece of a stream. `seq` counts from 0 on each edge and is filled in by the sending worker."""

    request_id: str
    source: str
    target: str
    body: Body
    seq: int = -1


class End(Struct, Generic[Body], tag="end"):
    """The last message of a stream; `count` is the number of chunks before it, which the sending worker fills in."""

    request_id: str
    source: str
    target: str
    body: Body = None  # type: ignore[assignment]
    count: int = -1


class Abort(Struct, tag="abort"):
    """The request is no longer wanted: free everything that it holds, and send no answer."""

    request_id: str


class Failed(Struct, tag="failed"):
    """A stage cannot go on with this request. Sent to the collector, which tells the client and aborts the rest."""

    request_id: str
    source: str
    error: ErrorInfo


class Ready(Struct, tag="ready"):
    """A worker's `incarnation`-th process has loaded its stages and reads its inbox.

    `ranks` are the processes under it that share its work, see `worker.tensor_parallel`.
    """

    worker: str
    incarnation: int
    pid: int
    stages: list[str]
    seconds: float
    ranks: list[int] = []


class StageStats(Struct):
    """What one stage has done since it started. Counters only grow; `live_requests` is the present number.

    Attributes:
        live_requests: Requests that it holds anything for.
        received, sent: Messages.
        steps: Batches it has computed.
        busy_seconds: Time it has spent on messages and batches.
        dropped_late: Messages that came after their request had ended.
        step_seconds: Time of each step.
        batch_sizes: Requests in each batch.
        extra: The stage's own metrics by name, such as cache hits or tokens in the KV cache.
    """

    live_requests: int = 0
    received: int = 0
    sent: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    dropped_late: int = 0
    step_seconds: Distribution = field(default_factory=lambda: Distribution.over(STEP_SECONDS))
    batch_sizes: Distribution = field(default_factory=lambda: Distribution.over(BATCH_SIZES))
    extra: dict[str, float] = {}


class Heartbeat(Struct, tag="heartbeat"):
    """Sent every second or so by a worker that is alive, with its counters and the last `Moved.epoch` it received."""

    worker: str
    incarnation: int
    stats: dict[str, StageStats]
    edges: list[EdgeStats] = []
    epoch: int = 0


class Pulse(Struct, tag="pulse"):
    """Sent every second or so by a worker on a GPU while its main thread makes progress, even within a step.

    See `worker.pulse`.
    """

    worker: str
    incarnation: int


class StartFailed(Struct, tag="start_failed"):
    """A worker could not load. `message` says why, and what to do about it."""

    worker: str
    incarnation: int
    message: str


class Step(Struct, tag="step"):
    """Sent by rank 0 of a stage to the other ranks: take a step. See `worker.tensor_parallel`."""


class Moved(Struct, tag="moved"):
    """The process that ran these stages is gone; its successor will read their messages at `address`.

    A worker that receives this fails the requests that have a broken stream in it, and reports `epoch` in its next
    heartbeat. Once all workers have done so, nothing is sent to the old address any more. `epoch` numbers these
    messages.
    """

    worker: str
    stages: list[str]
    address: str
    epoch: int


class Shutdown(Struct, tag="shutdown"):
    """Leave the loop and exit."""


Work: TypeAlias = Start[Any] | Chunk[Any] | End[Any]
Control: TypeAlias = Ready | Heartbeat | Pulse | Notes | StartFailed | Moved | Step | Shutdown
Message: TypeAlias = Work | Abort | Failed | Control

_NIL = msgspec.msgpack.encode(None)
_Undecoded: TypeAlias = Start[msgspec.Raw] | Chunk[msgspec.Raw] | End[msgspec.Raw] | Abort | Failed | Control


class WireError(Exception):
    """Frames that are not a message, or a body that does not fit its edge.

    `request_id` names the request that cannot go on, if the frames still show it.
    """

    def __init__(self, reason: str, request_id: str | None = None) -> None:
        super().__init__(reason)
        self.request_id = request_id


class Codec:
    """Turns messages into frames and back. It keeps state while it works, so use one for each thread.

    Args:
        body_types: For each edge ``(source, target)``, the struct type (or union of tagged structs) of its bodies.
    """

    def __init__(self, body_types: dict[tuple[str, str], Any]) -> None:
        self._frames: list[memoryview] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._lift)
        self._decoder = msgspec.msgpack.Decoder(_Undecoded)
        self._received: Sequence[Buffer] = ()
        self._bodies = {edge: msgspec.msgpack.Decoder(body, dec_hook=self._lower) for edge, body in body_types.items()}

    def encode(self, message: Message) -> list[Buffer]:
        """Frames of `message`. They share memory with its tensors: do not change these until the frames are sent."""
        self._frames = []
        try:
            return [self._encoder.encode(message), *self._frames]
        finally:
            self._frames = []

    def decode(self, frames: Sequence[Buffer]) -> Message:
        """The message in `frames`; its tensors are views of them.

        Raises:
            WireError: not a message, or the body does not fit the edge it claims.
        """
        if not frames:
            raise WireError("no frames")
        try:
            message = self._decoder.decode(frames[0])
        except msgspec.MsgspecError as error:
            raise WireError(str(error)) from error
        if isinstance(message, (Start, Chunk, End)):
            message.body = self._decode_body(message, frames)
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

    def _lift(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._frames.append(value.buffer())
            return [len(self._frames), value.dtype, value.shape]
        raise NotImplementedError(f"a {type(value).__name__} cannot travel")

    def _lower(self, kind: type, value: Any) -> Any:
        if kind is not Tensor:
            raise NotImplementedError(f"a {kind.__name__} cannot arrive")
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
