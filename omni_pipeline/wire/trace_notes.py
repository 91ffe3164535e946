"""What processes note about single requests when they are traced, as it travels to the main process."""

from __future__ import annotations

from msgspec import Struct


class Took(Struct, array_like=True):
    """A message has been taken up by a stage, or by the main process.

    Attributes:
        sent: When it left its sender's step.
        taken: When it was taken up.
        done: When the receiver had dealt with it, as far as it does so at once.
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
        requests: Whom it worked on.
        first, latest: For each of them, when the first and the latest message came that no step had seen. Where a stage
            goes on without being told, both are the end of its step before.
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
