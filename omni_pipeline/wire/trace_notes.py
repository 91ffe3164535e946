"""The notes about traced requests that processes send to the main process."""

from __future__ import annotations

from msgspec import Struct


class Took(Struct, array_like=True):
    """A stage, or the main process, has taken up a message.

    Attributes:
        sent: When it left its sender's step.
        taken: When it was taken up.
        done: When the receiver had finished handling it; work that it queues comes later.
    """

    request_id: str
    source: str
    target: str
    sent: float
    taken: float
    done: float


class Stepped(Struct, array_like=True):
    """A stage has worked on a batch from `begin` to `end`.

    Attributes:
        requests: Ids of the requests in the batch.
        first, latest: For each request, when the first and the latest message came that no earlier step had seen. If
            the stage went on without a new message, both are the end of the request's previous step.
    """

    stage: str
    begin: float
    end: float
    requests: list[str]
    first: list[float]
    latest: list[float]


class Notes(Struct, tag="notes"):
    """What one process has noted up to the time `until`."""

    worker: str
    until: float
    took: list[Took]
    stepped: list[Stepped]
