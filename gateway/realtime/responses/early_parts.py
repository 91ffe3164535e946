"""Computes the beginning of a long turn while the user is still speaking.

The conversation so far, including this beginning of the turn, goes through the pipeline as a request for one token. The
token is discarded. Afterwards, the caches of the audio encoder and the thinker contain the complete windows of the
sound: see `stages/preprocessing/sound_windows.py`. The request for the whole turn finds the windows in the caches.
Features are relative to the loudest sound of the turn. So if louder sound arrives later, the features of earlier
windows change. Then these windows are not found in the caches and are computed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from gateway.answers.exchange import Exchanges, Sender
from gateway.realtime.items.conversation import new_id
from gateway.realtime.responses.speculation import Speculations
from omni_pipeline.errors import OmniError
from stages.messages import ChatRequest, TextOutput

log = logging.getLogger(__name__)


class EarlyParts:
    """The early work of one session: one request at a time. The work stops when a response of the session begins.

    Args:
        exchanges: Admits the requests.
        speculations: Limits the early work of all sessions. If `speculations` does not allow more early work now, the
            beginning of a turn is not computed early.
        sender: Describes the session as the sender of a request.
    """

    def __init__(self, exchanges: Exchanges, speculations: Speculations, sender: Callable[[str], Sender]) -> None:
        self._exchanges = exchanges
        self._speculations = speculations
        self._sender = sender
        self._task: asyncio.Task[None] | None = None

    def compute(self, chat: Callable[[], ChatRequest]) -> None:
        """Compute a prompt, if there is room and no earlier prompt is still being computed.

        Args:
            chat: Makes the request whose prompt is computed.
        """
        if self._speculations.possible and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(_only_prompt(chat())))

    def stop(self) -> None:
        """Stop the work."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop, and wait until nothing runs."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self, chat: ChatRequest) -> None:
        request_id = new_id("early")
        try:
            with self._speculations.place():
                async with self._exchanges.open_for(self._sender(request_id)) as exchange:
                    exchange.place.hold(sum(medium.nbytes for medium in chat.media))
                    async with await exchange.submit(request_id, chat) as answer:
                        while bodies := await answer.take():
                            exchange.place.free()
                            exchange.progress.saw(bodies)
                    exchange.progress.outcome = "ok"
            self._exchanges.metrics.realtime_early_parts.inc()
        except OmniError as error:  # if the error occurs again, the answer to the whole turn reports it
            log.debug(
                "a part of the user's speech could not be computed before the user stopped speaking: %s",
                error.info.message,
            )


def _only_prompt(chat: ChatRequest) -> ChatRequest:
    """A request with the same prompt, for one token of text."""
    thinker = msgspec.structs.replace(chat.thinker, max_tokens=1, grammar=None)
    return msgspec.structs.replace(chat, thinker=thinker, text=TextOutput(stream=False), speech=None)
