"""Numbers stream chunks when they are sent, and checks the numbers when they arrive. So the receiver notices a lost
chunk at once.

Only open streams have a counter. If a stream never gets an `End`, its counter stays until `forget` is called for its
request, or until `KEPT_REQUESTS` newer requests have opened streams.
"""

from __future__ import annotations

from collections.abc import Collection, Container

from omni_pipeline.errors import internal
from omni_pipeline.wire.messages import Chunk, End, Start, Work

# This number is far larger than the number of requests in progress. So only counters of requests that ended long ago
# are dropped.
KEPT_REQUESTS = 16_384


class _Counters:
    """Counts the chunks of each open stream of each request."""

    def __init__(self) -> None:
        self._requests: dict[str, dict[tuple[str, str], int]] = {}

    def __len__(self) -> int:
        """Number of requests that have open streams."""
        return len(self._requests)

    def forget(self, request_id: str) -> None:
        """Drop the counters of a request that has ended. Ignores unknown ids."""
        self._requests.pop(request_id, None)

    @property
    def requests(self) -> Collection[str]:
        """Ids of the requests that have open streams."""
        return self._requests.keys()

    def open_with(self, stages: Container[str]) -> list[str]:
        """Ids of the requests that have an open stream from or to one of `stages`."""
        return [
            request_id
            for request_id, streams in self._requests.items()
            if any(source in stages or target in stages for source, target in streams)
        ]

    def _advance(self, message: Chunk | End) -> int:
        """Count `message`. If `message` is an `End`, forget its stream. Returns the number of earlier chunks in the
        stream.
        """
        request_id, edge = message.request_id, (message.source, message.target)
        streams = self._requests.get(request_id)
        before = streams.get(edge, 0) if streams else 0
        if isinstance(message, End):
            if streams:
                streams.pop(edge, None)
                if not streams:
                    del self._requests[request_id]
        elif streams is None:
            self._requests[request_id] = {edge: 1}
            if len(self._requests) > KEPT_REQUESTS:
                del self._requests[next(iter(self._requests))]
        else:
            streams[edge] = before + 1
        return before


class SendLedger(_Counters):
    """Numbers the messages that a process sends."""

    def stamp(self, message: Work) -> None:
        """Set `Chunk.seq` or `End.count`."""
        if isinstance(message, Chunk):
            message.seq = self._advance(message)
        elif isinstance(message, End):
            message.count = self._advance(message)


class ReceiveLedger(_Counters):
    """Checks that no chunk is missing or repeated in the streams that a process receives."""

    def check(self, message: Work) -> None:
        """Count `message`, and check its number.

        Raises:
            OmniError: (500, ``stream_gap``) earlier chunks were lost or arrived twice. The request cannot continue, so
                the caller must end the request with an error and call `forget`.
        """
        if isinstance(message, Start):
            return
        expected = self._advance(message)
        number = message.seq if isinstance(message, Chunk) else message.count
        if number != expected:
            kind = "the chunk with number" if isinstance(message, Chunk) else "an end with the chunk count"
            raise internal(
                f"The stream {message.source} → {message.target} has a gap: "
                f"{kind} {number} arrived, but {expected} was expected.",
                code="stream_gap",
            )


def is_first(message: Work) -> bool:
    """Whether `message` is the first message of its request on its edge. The message must already have its number."""
    match message:
        case Chunk():
            return message.seq == 0
        case End():
            return message.count == 0
    return True
