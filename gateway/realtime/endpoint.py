"""Handles `GET /v1/realtime`: opens sessions, and ends them when the server stops."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from aiohttp import web

from gateway.answers.exchange import Exchanges
from gateway.fair_limit import FairLimit
from gateway.http.cors import CrossOrigin
from gateway.http.middleware import CLIENT, REQUEST_ID
from gateway.realtime.client_secrets import ClientSecrets
from gateway.realtime.dialogue import Dialogue
from gateway.realtime.items.conversation import new_id
from gateway.realtime.live_session import LiveSession
from gateway.realtime.outbox import Outbox
from gateway.realtime.protocol.session import SessionRules
from gateway.realtime.responses.answering import Party, Services
from gateway.realtime.responses.speculation import Speculations
from gateway.realtime.turns.voice_pool import VoicePool
from omni_pipeline.errors import ErrorInfo, OmniError, bad_request, unavailable
from omni_pipeline.logs import fields

log = logging.getLogger(__name__)

# The subprotocol of the Realtime API, which browsers offer.
_PROTOCOL = "realtime"
# Time between two pings. A client that does not answer within half of this time counts as gone.
_PING_SECONDS = 60.0
# Longest time for which the server waits for the client's answer when it closes a connection.
_CLOSE_SECONDS = 2.0


class Realtime:
    """The realtime sessions of one server.

    Args:
        exchanges: Admits responses to the pipeline.
        rules: Applies updates of settings.
        secrets: The temporary tokens.
        origins: The origins of web pages that may open sessions.
        model: Name of the model.
    """

    def __init__(
        self, exchanges: Exchanges, rules: SessionRules, secrets: ClientSecrets, origins: CrossOrigin, *, model: str
    ) -> None:
        self._services = Services(rules, exchanges, VoicePool(), Speculations(exchanges))
        self._secrets = secrets
        self._origins = origins
        self._model = model
        self._open = FairLimit(exchanges.limits.realtime_sessions)
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End each session after its active response. Later requests for a session get 503."""
        self._stopping.set()

    async def empty(self) -> None:
        """Wait until no session is open."""
        await self._none_open.wait()

    def close(self) -> None:
        """End the threads of the voice detection."""
        self._services.voices.close()

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Open a session, and serve the session until it ends.

        Raises:
            OmniError: 403 for a foreign origin, 426 for a request that opens no WebSocket, 503 if there are too many
                sessions or the server is stopping.
        """
        self._check(request)
        limits = self._services.limits
        socket = web.WebSocketResponse(
            protocols=(_PROTOCOL,),
            heartbeat=_PING_SECONDS,
            timeout=_CLOSE_SECONDS,
            max_msg_size=limits.realtime_event_bytes,
            # Compression would not make sound smaller. A small message could become very large when decompressed.
            compress=False,
            decode_text=False,
        )
        began = time.monotonic()
        session_id = new_id("sess")
        client = request[CLIENT]
        self._open.take(client)
        self._none_open.clear()
        ending = "cancelled"
        try:
            with self._services.metrics.realtime_sessions.track_inprogress():
                await socket.prepare(request)
                ending = await self._serve(request, socket, session_id)
        finally:
            self._open.give(client)
            if not self._open.held:
                self._none_open.set()
            seconds = time.monotonic() - began
            self._services.metrics.realtime_session_seconds.observe(seconds)
            log.info(
                "realtime session",
                extra=fields(
                    ended=ending,
                    session_id=session_id,
                    seconds=round(seconds, 6),
                    request_id=request[REQUEST_ID],
                    client=client,
                ),
            )
        return socket

    def _check(self, request: web.Request) -> None:
        self._origins.check_socket(request)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_request(
                "This path opens a WebSocket: connect with ws:// or wss://.", code="upgrade_required", status=426
            )
        if self._stopping.is_set():
            raise unavailable("The server is shutting down.", code="shutting_down")
        if not self._open.fits(request[CLIENT]):
            raise OmniError(
                ErrorInfo(
                    status=503,
                    message="The server cannot open another realtime session for you now: "
                    f"{self._open.held} sessions are open, and {self._open.held_by(request[CLIENT])} of these sessions "
                    f"are yours. The server keeps the remaining {self._open.free} sessions for clients that have fewer "
                    "sessions than you. Try again in a moment.",
                    type="service_unavailable_error",
                    code="too_many_sessions",
                    retry_after=5,
                )
            )

    async def _serve(self, request: web.Request, socket: web.WebSocketResponse, session_id: str) -> str:
        """Serve an open connection. Returns a short text for the log: how the session ended."""
        limits = self._services.limits
        outbox = Outbox(
            socket,
            beta="realtime=v1" in request.headers.get("OpenAI-Beta", ""),
            most_bytes=limits.reader_bytes,
            send_seconds=limits.receive_seconds,
        )
        party = Party(
            client=request[CLIENT],
            headers=request.headers,
            session_id=session_id,
            model=self._model,
            expires_at=int(time.time() + limits.realtime_session_seconds),
        )
        session = self._secrets.session_of(request) or self._services.rules.default()
        dialogue = Dialogue(party, session, self._services, outbox)
        in_thread = partial(self._services.exchanges.in_thread, party.client)
        live = LiveSession(socket, dialogue, outbox, limits, self._stopping, in_thread)
        try:
            return await live.run()
        except ConnectionError:
            if request.transport is not None:
                request.transport.abort()
            return "cut off"
        finally:
            await dialogue.close()
