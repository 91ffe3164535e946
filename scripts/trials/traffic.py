"""Keeps a server busy with clients whose requests have known answers, and records how each request ended."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import aiohttp
from msgspec import Struct, field

from trials.client import Outcome, send
from trials.conversations import TrialConversation

# A refused client tries again after at most this time, even if the server's Retry-After is longer.
LONGEST_PAUSE = 0.5


class Book(Struct):
    """The correct answers, and the outcomes of all requests.

    Attributes:
        right: For each conversation, the digest of the correct answer. This is the answer that was given while no other
            request was running.
        outcomes: The outcomes in the order in which the requests ended.
    """

    right: dict[str, str] = {}
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def wrong(self) -> list[Outcome]:
        """Outcomes whose answer differs from the correct answer of the conversation."""
        return [each for each in self.outcomes if each.digest not in (None, self.right[each.conversation])]

    @property
    def without_end(self) -> list[Outcome]:
        """Requests that ended in neither an answer nor an error."""
        return [each for each in self.outcomes if each.end in ("cut", "endless")]

    def counts(self) -> dict[str, int]:
        """The number of requests by the way in which they ended."""
        return dict(Counter(each.code or each.end for each in self.outcomes).most_common())


async def ask_alone(session: aiohttp.ClientSession, url: str, wanted: Sequence[TrialConversation]) -> dict[str, str]:
    """Send each conversation while no other request is running. Returns the digests of the answers.

    Raises:
        RuntimeError: A conversation got no answer.
    """
    right = {}
    for conversation in wanted:
        outcome = await send(session, url, conversation)
        if outcome.digest is None:
            raise RuntimeError(f"{conversation.name} got no answer: {outcome}")
        right[conversation.name] = outcome.digest
    return right


class Traffic:
    """Runs `clients` clients at the same time. Each client sends random requests from `wanted`, and waits for the end
    of a request before it sends the next.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        wanted: Sequence[TrialConversation],
        book: Book,
        *,
        clients: int,
        seed: int,
    ) -> None:
        self._session = session
        self._url = url
        self._wanted = wanted
        self._book = book
        self._ending = asyncio.Event()
        self._tasks = [asyncio.create_task(self._client(random.Random(f"{seed} {n}"))) for n in range(clients)]

    async def end(self) -> None:
        """Let each client finish its request, and stop."""
        self._ending.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, draw: random.Random) -> None:
        while not self._ending.is_set():
            outcome = await send(self._session, self._url, draw.choice(self._wanted))
            self._book.outcomes.append(outcome)
            if outcome.end != "answered":
                await asyncio.sleep(min(outcome.retry_after or LONGEST_PAUSE, LONGEST_PAUSE))
