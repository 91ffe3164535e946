"""Defines the notes about traced requests that processes send to the main process."""

from __future__ import annotations

from msgspec import Struct

# If not all requests are traced, the id of a traced request ends in this letter, and other ids do not.
MARK = "t"


class Took(Struct, array_like=True):
    """The note that a stage, or the main process, has handled a message.

    Attributes:
        sent: Time at which the sender sent the message.
        taken: Time at which the receiver began to handle the message.
        done: Time at which the receiver had finished handling the message. Work that the message has caused may still
            follow later.
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
            new message has arrived since the previous step, both times are the end of the previous step.
        others: Number of further requests in the batch that are not traced.
    """

    stage: str
    begin: float
    end: float
    requests: list[str]
    first: list[float]
    latest: list[float]
    others: int = 0


class Notes(Struct, tag="notes"):
    """The notes of one process. These notes are complete up to the time `until`."""

    worker: str
    until: float
    took: list[Took]
    stepped: list[Stepped]

    def shifted(self, seconds: float) -> Notes:
        """The same notes with `seconds` added to every time. This converts the times to the clock of another host."""
        took = [
            Took(
                note.request_id,
                note.source,
                note.target,
                sent=note.sent + seconds,
                taken=note.taken + seconds,
                done=note.done + seconds,
            )
            for note in self.took
        ]
        stepped = [
            Stepped(
                note.stage,
                note.begin + seconds,
                note.end + seconds,
                note.requests,
                [at + seconds for at in note.first],
                [at + seconds for at in note.latest],
                note.others,
            )
            for note in self.stepped
        ]
        return Notes(self.worker, self.until + seconds, took, stepped)
