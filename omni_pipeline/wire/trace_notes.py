"""Defines the notes about traced requests that processes send to the main process."""

from __future__ import annotations

from msgspec import Struct


class Took(Struct, array_like=True):
    """The note that a stage, or the main process, has handled a message.

    Attributes:
        sent: Time at which the sender sent the message.
        taken: Time at which the receiver began to handle it.
        done: Time at which the receiver had finished handling the message. Work that the message queues is done later.
    """

    request_id: str
    source: str
    target: str
    sent: float
    taken: float
    done: float


class Stepped(Struct, array_like=True):
    """The note that a stage has worked on a batch from `begin` to `end`.

    Attributes:
        requests: Ids of the requests in the batch.
        first, latest: For each request, the times of the first and the latest message since its previous step. If no
            new message has come since the previous step, both times are the end of the previous step.
    """

    stage: str
    begin: float
    end: float
    requests: list[str]
    first: list[float]
    latest: list[float]


class Notes(Struct, tag="notes"):
    """The notes of one process. They are complete up to the time `until`."""

    worker: str
    until: float
    took: list[Took]
    stepped: list[Stepped]
