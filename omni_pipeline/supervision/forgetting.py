"""Tracks which workers may still store data of an aborted request.

A worker that has handled an abort stores no data of the request any more. But a message of the request may still be in
transit to the worker, or may wait in the worker's socket. So each worker passes the abort on to all workers to which
its stages may send messages. Each worker answers every abort that it receives. Messages between two processes arrive in
order. So when worker B answers the abort that worker A has passed on, all earlier messages from A to B have arrived,
and B has dropped them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from omni_pipeline.wire.messages import Forgotten

# The sender and the receiver of an abort. The name of the main process is empty, as in `wire.messages.Abort`.
Connection = tuple[str, str]


class _Abandoned(Struct):
    """One aborted request.

    Attributes:
        unanswered: The connections over which an abort has been sent, but not answered yet.
        done: Called when `unanswered` becomes empty.
    """

    unanswered: set[Connection]
    done: Callable[[], None]


class Forgetting:
    """The aborted requests for which a worker may still store data.

    Args:
        receivers: For each worker, the other workers to which its stages may send messages.
    """

    def __init__(self, receivers: Mapping[str, Collection[str]]) -> None:
        self._receivers = receivers
        self._requests: dict[str, _Abandoned] = {}

    def __len__(self) -> int:
        """Number of aborted requests for which a worker may still store data."""
        return len(self._requests)

    def begin(self, request_id: str, workers: Collection[str], done: Callable[[], None]) -> None:
        """Expect answers from `workers`, to which the main process sends an abort.

        Args:
            done: Called when no worker can have data of the request any more. Called at once if there are no workers.
        """
        unanswered = {("", worker) for worker in workers}
        for sender in workers:
            unanswered |= {(sender, receiver) for receiver in self._receivers[sender] if receiver in workers}
        self._requests[request_id] = _Abandoned(unanswered, done)
        self._settle(request_id)

    def answer(self, message: Forgotten) -> None:
        """Note a worker's answer. Unexpected answers are ignored, such as answers of a worker that has ended."""
        abandoned = self._requests.get(message.request_id)
        if abandoned is not None:
            abandoned.unanswered.discard((message.sender, message.worker))
            self._settle(message.request_id)

    def end_worker(self, worker: str) -> None:
        """Note that a worker's process has ended. The data of the process are lost, and so are all messages from and to
        the process.
        """
        for request_id, abandoned in list(self._requests.items()):
            abandoned.unanswered = {pair for pair in abandoned.unanswered if worker not in pair}
            self._settle(request_id)

    def end_connection(self, sender: str, receiver: str) -> None:
        """Note that a connection between two processes has ended. All messages in transit on this connection are lost.
        The main process has an empty name. If the receiver is the main process, the answers of the sender are lost.
        """
        for request_id, abandoned in list(self._requests.items()):
            if receiver:
                abandoned.unanswered.discard((sender, receiver))
            else:
                abandoned.unanswered = {pair for pair in abandoned.unanswered if pair[1] != sender}
            self._settle(request_id)

    def _settle(self, request_id: str) -> None:
        if not self._requests[request_id].unanswered:
            self._requests.pop(request_id).done()


def receivers_of(workers: Mapping[str, Collection[str]], edges: Collection[tuple[str, str]]) -> dict[str, set[str]]:
    """For each worker, the other workers to which its stages may send messages.

    Args:
        workers: The stages of each worker.
        edges: The source and the target of each edge of the graph.
    """
    return {
        sender: {
            receiver
            for receiver, theirs in workers.items()
            if receiver != sender and any(source in own and target in theirs for source, target in edges)
        }
        for sender, own in workers.items()
    }
