"""The main process's side of the join: waits for the hosts of the configuration, and checks each host that joins.

The *door* is a CURVE socket that accepts any client that has the server's public key. A host that has not sent a valid
token gets only a refusal. The sockets for the work of the service are separate: they accept only the keys of hosts that
have joined.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping

import msgspec
import zmq
from msgspec import Struct
from zmq.auth import CURVE_ALLOW_ANY
from zmq.auth.thread import ThreadAuthenticator

from omni_pipeline.config.schema import Cluster as ClusterConfig
from omni_pipeline.config.schema import HostConfig
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.errors import StartupError, suggestion
from omni_pipeline.hosts.checkpoint_digest import different_files
from omni_pipeline.hosts.invitation import Invitation
from omni_pipeline.hosts.joining import (
    WAITING_SECONDS,
    Admitted,
    FromHost,
    Hello,
    Introduction,
    Refused,
    ToHost,
    Waiting,
    Welcome,
    differences,
    own_versions,
)
from omni_pipeline.logs import Format
from omni_pipeline.supervision.control_socket import ControlSocket, OrderError, Tell
from omni_pipeline.supervision.remote_hosts import Member
from omni_pipeline.wire.keys import new_key_pair
from omni_pipeline.wire.network import HostLink
from omni_pipeline.wire.transport import MAIN, make_run_dir

# The argument `kind` of `ControlSocket` for orders to make invitations.
INVITING = "invite"

_TOKEN_BYTES = 32

# Maximum size of a message of a host that has not joined yet, in bytes.
_MOST_BYTES = 256 * 1024

# Maximum number of messages to handle before other tasks of the event loop can run.
_DRAIN_MESSAGES = 32

logger = logging.getLogger(__name__)


class InviteOrder(Struct, forbid_unknown_fields=True):
    """The order to make an invitation for a host."""

    host: str


class Expected(Struct, frozen=True):
    """The conditions that a host must meet to join.

    Attributes:
        model_path: Directory of the checkpoint on the main host; empty if the stages load no checkpoint.
        digest: See `checkpoint_digest.digest`.
        uses_gpus: Whether workers on other hosts may use GPUs.
    """

    model_path: str
    digest: dict[str, str]
    uses_gpus: bool
    log_level: str
    log_format: Format


class _Guest(Struct):
    """A host of the configuration.

    Attributes:
        token: The token of the valid invitation; empty if there is no valid invitation.
        key: The public key with which the host has sent a valid token; empty if it has not sent one.
        route: ZeroMQ's routing id of the host's latest connection to the door; empty if there was none.
        facts: The host's hardware, once the host is a member.
    """

    config: HostConfig
    token: str = ""
    key: str = ""
    route: bytes = b""
    facts: HostFacts | None = None
    member: Member | None = None


class Cluster:
    """The hosts of one service. Create the object on the event loop, and call `close` at the end.

    Args:
        settings: The setting ``cluster``.
        hosts: The hosts that have to join.
        expected: The conditions that every host must meet.

    Raises:
        StartupError: the address or the port cannot be used.
    """

    def __init__(self, settings: ClusterConfig, hosts: Mapping[str, HostConfig], expected: Expected) -> None:
        assert settings.listen is not None
        self._settings = settings
        self._expected = expected
        self._guests = {name: _Guest(config) for name, config in hosts.items()}
        self._keys = new_key_pair()
        self._rejoined: Callable[[Member], None] | None = None
        self._changed = asyncio.Event()
        self._decoder = msgspec.msgpack.Decoder(FromHost)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve(domain="*", location=CURVE_ALLOW_ANY)
        self._door = self._context.socket(zmq.ROUTER)
        self._run_dir = make_run_dir()
        self._control = ControlSocket(self._run_dir, INVITING, InviteOrder, self._invite)
        self._closed = False
        try:
            self._address = self._open_door(settings.listen, settings.port)
        except BaseException:
            self.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._door.fileno(), self._take_turn)
        self._timer = self._loop.call_later(WAITING_SECONDS, self._comfort)

    def _open_door(self, listen: str, port: int) -> str:
        door = self._door
        door.setsockopt(zmq.MAXMSGSIZE, _MOST_BYTES)
        door.setsockopt(zmq.LINGER, 0)
        door.setsockopt(zmq.ROUTER_MANDATORY, 1)  # report a host that has gone, instead of dropping its messages
        door.setsockopt(zmq.CURVE_SERVER, 1)
        door.setsockopt_string(zmq.CURVE_SECRETKEY, self._keys.secret)
        shown = f"[{listen}]" if ":" in listen else listen
        door.setsockopt(zmq.IPV6, ":" in listen)
        try:
            door.bind(f"tcp://{shown}:{port or '*'}")
        except zmq.ZMQError as error:
            raise StartupError(
                f"Cannot listen for other hosts on {listen} port {port} ({error.strerror}): check cluster.listen and "
                "cluster.port."
            ) from error
        return door.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def address(self) -> str:
        """Endpoint at which hosts join."""
        return self._address

    @property
    def link(self) -> HostLink:
        """The link of the processes of the main host."""
        ports = self._settings.port_range
        assert self._settings.listen is not None
        return HostLink(
            host=MAIN,
            keys=self._keys,
            listen=self._settings.listen,
            ports=(ports.start, ports.stop - 1) if ports is not None else (0, 0),
            hosts={MAIN: self._keys.public, **{member.name: member.public_key for member in self.members}},
            lease_seconds=self._settings.lease_seconds,
        )

    @property
    def members(self) -> Collection[Member]:
        """The hosts that have joined."""
        return [guest.member for guest in self._guests.values() if guest.member is not None]

    @property
    def missing(self) -> list[str]:
        """Names of the hosts that have not joined yet."""
        return [name for name, guest in self._guests.items() if guest.member is None]

    async def gather(self) -> dict[str, HostFacts]:
        """Wait until every host has joined. Returns the facts of the hosts by name."""
        await self._control.open()
        while self.missing:
            self._changed.clear()
            await self._changed.wait()
        return {name: guest.facts for name, guest in self._guests.items() if guest.facts is not None}

    def serve(self, rejoined: Callable[[Member], None]) -> None:
        """Note that the service has started. From now on, `rejoined` is called with each host that joins again."""
        self._timer.cancel()
        self._rejoined = rejoined

    def invite(self, host: str) -> Invitation:
        """A new invitation for a host. An earlier invitation for this host becomes invalid.

        Raises:
            OrderError: the configuration has no such host.
        """
        guest = self._guests.get(host)
        if guest is None:
            raise OrderError(f"The configuration has no host {host}; {suggestion(host, self._guests)}")
        guest.token = secrets.token_urlsafe(_TOKEN_BYTES)
        return Invitation(self._address, self._keys.public, host, guest.token)

    def close(self) -> None:
        """Close the door, and remove all files."""
        if self._closed:
            return
        self._closed = True
        self._control.close()
        if hasattr(self, "_timer"):
            self._timer.cancel()
            self._loop.remove_reader(self._door.fileno())
        self._door.close(linger=0)
        self._authenticator.stop()
        self._context.term()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    # --- orders and messages ---

    async def _invite(self, order: InviteOrder, tell: Tell) -> None:
        tell(self.invite(order.host).text())

    def _take_turn(self) -> None:
        if self._closed:
            return
        for _ in range(_DRAIN_MESSAGES):
            try:
                frames = self._door.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                key = str(frames[-1].get("User-Id"))
                self._take(frames[0].bytes, key, self._decoder.decode(frames[-1].buffer))
            except msgspec.MsgspecError:
                logger.warning("a host that tries to join has sent an unreadable message")
        self._loop.call_soon(self._take_turn)

    def _take(self, route: bytes, key: str, message: FromHost) -> None:
        match message:
            case Hello():
                self._answer(route, self._welcome(route, key, message))
            case Introduction():
                answer, member = self._admit(route, key, message)
                self._answer(route, answer)
                if member is not None and self._rejoined is not None:
                    self._rejoined(member)
                self._changed.set()

    def _welcome(self, route: bytes, key: str, hello: Hello) -> ToHost:
        guest = self._guests.get(hello.host)
        if guest is None or not self._may_join(guest, key, hello.token):
            logger.warning("a host that uses the name %.40s tried to join without a valid invitation", hello.host)
            return Refused(
                "The invitation is not valid. Each invitation can be used only once: make a new invitation with "
                "`sgl-omni invite HOST`."
            )
        guest.token, guest.key, guest.route = "", key, route
        differing = differences(own_versions(), hello.versions)
        if differing:
            return Refused(
                f"The versions of the software on the host and on the server differ: {'; '.join(differing)}. Install "
                "the server's versions on the host."
            )
        link, config = self.link, guest.config
        return Welcome(
            model_path=config.model_path or self._expected.model_path,
            listen=config.listen or "",
            ports=link.ports,
            lease_seconds=link.lease_seconds,
            uses_gpus=self._expected.uses_gpus,
            log_level=self._expected.log_level,
            log_format=self._expected.log_format,
        )

    @staticmethod
    def _may_join(guest: _Guest, key: str, token: str) -> bool:
        """Whether a host may join. It needs a valid token, or the key that it used when it sent a valid token."""
        known = bool(guest.key) and hmac.compare_digest(guest.key, key)
        return known or (bool(guest.token) and hmac.compare_digest(guest.token, token))

    def _admit(self, route: bytes, key: str, introduction: Introduction) -> tuple[ToHost, Member | None]:
        name = next((name for name, guest in self._guests.items() if guest.route == route and guest.key == key), None)
        if name is None:
            return Refused(
                "The host has not been admitted with a valid invitation: make a new invitation with `sgl-omni invite "
                "HOST`."
            ), None
        differing = different_files(self._expected.digest, introduction.digest)
        if differing:
            reason = (
                f"The checkpoint at {introduction.model_path} on the host differs from the server's checkpoint: "
                f"{differing}. Copy the server's checkpoint to this path, or set hosts.{name}.model_path."
            )
            return Refused(reason), None
        guest = self._guests[name]
        guest.facts = introduction.facts
        guest.member = Member(
            name=name,
            public_key=key,
            address=introduction.address,
            run_dir=introduction.run_dir,
            model_path=introduction.model_path,
            listen=introduction.listen,
        )
        return Admitted(), guest.member

    def _answer(self, route: bytes, message: ToHost) -> bool:
        """Send a message to a host. Returns whether there is a connection to the host."""
        try:
            self._door.send_multipart([route, msgspec.msgpack.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def _comfort(self) -> None:
        """Send `Waiting` to the hosts that have joined, so that they continue to wait for the start. A host whose
        connection has ended has to join again.
        """
        for name, guest in self._guests.items():
            if guest.member is not None and not self._answer(guest.route, Waiting()):
                logger.warning("host %s left before the workers started; the host has to join again", name)
                guest.member = None
        self._timer = self._loop.call_later(WAITING_SECONDS, self._comfort)
