"""Handles `POST /v1/realtime/client_secrets`. The endpoint returns temporary tokens that open realtime sessions. So a
web page needs no API key.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import Meta, Struct

from gateway.answers.exchange import Exchanges
from gateway.api.body_fields import BodyFields
from gateway.api.field_errors import FieldErrors, fields_of
from gateway.bodies.json_body import JsonBody
from gateway.http.middleware import CLIENT, json_response, token_of
from gateway.realtime.items.conversation import new_id
from gateway.realtime.protocol import client_events
from gateway.realtime.protocol.items import Strict
from gateway.realtime.protocol.session import Session, SessionRules, session_object
from omni_pipeline.errors import ErrorInfo, OmniError

PATH = "/v1/realtime"
"""The path of sessions. Only requests to this path may use a temporary token."""

MOST_SECRETS = 10_000
_DEFAULT_SECONDS = 600


class ExpiresAfter(Strict):
    anchor: Literal["created_at"] | None = None
    seconds: Annotated[int, Meta(ge=10, le=7200)] | None = None


class SecretRequest(Strict):
    """The request for a secret."""

    expires_after: ExpiresAfter | None = None
    session: client_events.SessionOptions | None = None


_FIELDS = BodyFields(
    SecretRequest,
    FieldErrors(
        {
            "": fields_of(SecretRequest),
            "expires_after": fields_of(ExpiresAfter),
            "session": fields_of(client_events.SessionOptions),
            "audio": fields_of(client_events.AudioOptions),
            "input": fields_of(client_events.InputOptions),
            "output": fields_of(client_events.OutputOptions),
        },
        {"session.type": ("realtime",)},
        {},
    ),
    verbatim={"session"},
)


class Secret(Struct, frozen=True):
    """A temporary token.

    Attributes:
        client: Name of the client that asked for the token. The limits for each client use this name.
        session: The settings at the beginning of each session that is opened with the token.
        expires_at: Unix time from which the token opens no more sessions.
    """

    client: str
    session: Session
    expires_at: int


class ClientSecrets:
    """Creates temporary tokens, and looks them up.

    Args:
        exchanges: Limits the size of request bodies.
        rules: Makes the settings of a session.
        model: Name of the model in the answers.
    """

    def __init__(self, exchanges: Exchanges, rules: SessionRules, *, model: str) -> None:
        self._exchanges = exchanges
        self._rules = rules
        self._model = model
        self._secrets: dict[str, Secret] = {}  # the secrets by their tokens

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Answer with a new token."""
        async with self._exchanges.open(request) as exchange:
            wanted = await exchange.read_json(_read)
            session = self._rules.default()
            if wanted.session is not None:
                session = self._rules.update(session, wanted.session)
            lasts = (wanted.expires_after and wanted.expires_after.seconds) or _DEFAULT_SECONDS
            secret = Secret(request[CLIENT], session, int(time.time()) + lasts)
            answer: dict[str, Any] = {
                "value": self._lend(secret),
                "expires_at": secret.expires_at,
                "session": session_object(session, new_id("sess"), self._model, 0),
            }
            exchange.progress.outcome = "ok"
            return json_response(answer)

    def find(self, token: str) -> Secret | None:
        """The secret with this token, if it has not expired."""
        secret = self._secrets.get(token)
        return secret if secret is not None and secret.expires_at > time.time() else None

    def client_of(self, request: web.Request, token: str) -> str | None:
        """Name of the client that asked for `token`. Returns None if `request` may not use `token`."""
        secret = self.find(token) if request.path == PATH else None
        return None if secret is None else secret.client

    def session_of(self, request: web.Request) -> Session | None:
        """The settings at the beginning of the session that `request` opens. None if the token of `request` is not a
        valid temporary token.
        """
        secret = self.find(token_of(request))
        return None if secret is None else secret.session

    def _lend(self, secret: Secret) -> str:
        now = time.time()
        if len(self._secrets) >= MOST_SECRETS:
            self._secrets = {token: one for token, one in self._secrets.items() if one.expires_at > now}
        if len(self._secrets) >= MOST_SECRETS:
            raise OmniError(
                ErrorInfo(
                    status=429,
                    message=f"The server has its maximum of {MOST_SECRETS} client secrets; "
                    "try again when some have expired.",
                    type="rate_limit_error",
                    code="too_many_client_secrets",
                    retry_after=60,
                )
            )
        token = f"ek_{secrets.token_hex(24)}"
        self._secrets[token] = secret
        return token


def _read(body: JsonBody) -> SecretRequest:
    if body.outline.strip() in (b"", b"{}"):
        return SecretRequest()
    return _FIELDS.read(body)
