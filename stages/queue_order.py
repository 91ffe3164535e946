"""Orders the requests that wait for a stage, so that a client with many requests does not delay the requests of other
clients. A *sender* is the number of a client, see `messages.Sampling.sender`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

# `TurnOrder` remembers this number of senders. If more senders take turns, the one that was served the longest time ago
# is forgotten, and counts as a new sender.
_SENDERS = 4096


def take_turns(waiting: Sequence[int], running: Iterable[int]) -> list[int]:
    """The order in which waiting requests should run, so that senders take turns. For each waiting request, count two
    kinds of requests of its sender: requests that are running, and waiting requests that arrived earlier. Requests with
    smaller counts come first. Requests with equal counts, and the requests of one sender, keep their order.

    Args:
        waiting: The sender of each waiting request, in the order of arrival.
        running: The sender of each running request.

    Returns:
        Indices into `waiting`.
    """
    before = Counter(running)
    ranks = []
    for sender in waiting:
        ranks.append(before[sender])
        before[sender] += 1
    return sorted(range(len(waiting)), key=ranks.__getitem__)


class TurnOrder:
    """Orders the requests that wait for a stage. The stage serves one request, or one batch, in each step. Between two
    steps no request runs, so running requests cannot show whose turn it is. Therefore, this class remembers when each
    sender was served last.
    """

    def __init__(self) -> None:
        # for each sender, the value of `_count` when it was last served
        self._served: OrderedDict[int, int] = OrderedDict()
        self._count = 0

    def order(self, waiting: Sequence[int]) -> list[int]:
        """The order in which waiting requests should be served: senders take turns, and the sender that was served the
        longest time ago is next. Requests of one sender keep their order.

        Args:
            waiting: The sender of each waiting request, in the order of arrival.

        Returns:
            Indices into `waiting`.
        """
        longest_ago = sorted(range(len(waiting)), key=lambda index: self._served.get(waiting[index], 0))
        return [longest_ago[index] for index in take_turns([waiting[index] for index in longest_ago], ())]

    def serve(self, sender: int) -> None:
        """Note that a request of this sender is being served."""
        self._count += 1
        self._served[sender] = self._count
        self._served.move_to_end(sender)
        if len(self._served) > _SENDERS:
            self._served.popitem(last=False)
