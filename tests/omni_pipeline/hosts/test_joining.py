"""How a host joins: the invitation, the checks, and everything that is refused."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import msgspec
import pytest
import zmq
from msgspec import structs

from omni_pipeline.config.schema import GroupConfig
from omni_pipeline.deployment.host_facts import HostFacts
from omni_pipeline.errors import StartupError
from omni_pipeline.hosts import agent, joining
from omni_pipeline.hosts.agent import run_agent
from omni_pipeline.hosts.checkpoint_digest import different_files, digest
from omni_pipeline.hosts.invitation import Invitation, read_invitation
from omni_pipeline.hosts.joining import Hello, Introduction, own_versions
from omni_pipeline.supervision.control_socket import OrderError
from omni_pipeline.wire.keys import KeyPair, new_key_pair
from tests.omni_pipeline.hosts.agents import JOIN_SECONDS, spread, until, waiting
from tests.omni_pipeline.sessions import SECONDS

pytestmark = pytest.mark.usefixtures("run_root")

CONFIG = spread(shout=GroupConfig(replicas=1, hosts=["b"]))
INTRODUCTION = Introduction(HostFacts(), {}, "tcp://127.0.0.2:1 key", "127.0.0.2", "/tmp/nowhere", "")


@pytest.fixture(autouse=True)
def _as_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run an agent in their own process. The agent must not change the log and the title of this process."""
    monkeypatch.setattr(agent.logs, "configure", lambda *_: None)
    monkeypatch.setattr(agent, "set_title", lambda _: None)


class Stranger:
    """A client that sends single messages to the door (see `omni_pipeline.hosts.cluster`)."""

    def __init__(self, invitation: Invitation, keys: KeyPair | None = None) -> None:
        keys = keys or new_key_pair()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt_string(zmq.CURVE_SERVERKEY, invitation.server_key)
        self.socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
        self.socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
        self.socket.connect(invitation.address)

    async def ask(self, message: msgspec.Struct | bytes, seconds: float = SECONDS) -> dict[str, object] | None:
        """The answer to a message, as a mapping; None if there is no answer in time."""
        self.socket.send(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))
        if not await asyncio.to_thread(self.socket.poll, round(seconds * 1000)):
            return None
        answer: dict[str, object] = msgspec.msgpack.decode(self.socket.recv())
        return answer

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def hello(invitation: Invitation, **versions: str) -> Hello:
    return Hello(invitation.host, invitation.token, own_versions() | versions)


# --- the text -----------------------------------------------------------------------------------------------------


def test_an_invitation_is_one_line_without_readable_secret() -> None:
    keys = new_key_pair()
    invitation = Invitation("tcp://10.0.0.1:20000", keys.public, "b", "secret-token")
    text = invitation.text()
    assert "\n" not in text
    assert read_invitation(f"  {text}\n") == invitation
    assert "secret-token" not in repr(invitation)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "sgl-omni-host-1:", "sgl-omni-host-1:####", "sgl-omni-host-2:" + base64.b64encode(b"x").decode()],
)
def test_other_texts_are_no_invitations(text: str) -> None:
    with pytest.raises(StartupError, match="not an invitation"):
        read_invitation(text)


def test_half_an_invitation_is_refused() -> None:
    text = Invitation("tcp://10.0.0.1:20000", new_key_pair().public, "b", "t").text()
    for length in range(len(text) - 3):
        with pytest.raises(StartupError, match="not an invitation"):
            read_invitation(text[:length])


# --- the door -----------------------------------------------------------------------------------------------------


async def test_a_token_is_valid_once(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = hosts.invite("b")
        first, second = Stranger(invitation), Stranger(invitation)
        answer = await first.ask(hello(invitation))
        assert answer is not None
        assert answer["type"] == "welcome"
        answer = await second.ask(hello(invitation))
        assert answer is not None
        assert answer["type"] == "refused"
        # the first host needs no token any more, because its key is known
        answer = await first.ask(structs.replace(hello(invitation), token=""))
        assert answer is not None
        assert answer["type"] == "welcome"
        first.close()
        second.close()


async def test_a_new_invitation_replaces_the_old_one(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        old, new = hosts.invite("b"), hosts.invite("b")
        stranger = Stranger(old)
        answer = await stranger.ask(hello(old))
        assert answer is not None
        assert answer["type"] == "refused"
        answer = await stranger.ask(hello(new))
        assert answer is not None
        assert answer["type"] == "welcome"
        stranger.close()


@pytest.mark.parametrize("token", ["", "x", "A" * 43])
async def test_a_wrong_token_is_refused(token: str, hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = hosts.invite("b")
        stranger = Stranger(invitation)
        answer = await stranger.ask(structs.replace(hello(invitation), token=token))
        assert answer is not None
        assert answer["type"] == "refused"
        # an introduction without a welcome is refused too
        answer = await stranger.ask(INTRODUCTION)
        assert answer is not None
        assert answer["type"] == "refused"
        assert hosts.cluster.missing == ["b"]
        stranger.close()


async def test_before_an_invitation_nobody_can_join(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        key = hosts.cluster.link.keys.public
        stranger = Stranger(Invitation(hosts.cluster.address, key, "b", ""))
        for host in ("b", "c", ""):
            answer = await stranger.ask(Hello(host, "", own_versions()))
            assert answer is not None
            assert answer["type"] == "refused"
        stranger.close()


async def test_another_server_key_gets_no_answer(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = structs.replace(hosts.invite("b"), server_key=new_key_pair().public)
        stranger = Stranger(invitation)
        assert await stranger.ask(hello(invitation), seconds=1.0) is None
        stranger.close()


async def test_clients_without_encryption_get_no_answer(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = hosts.invite("b")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        plain = context.socket(zmq.DEALER)
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(invitation.address)
        plain.send(msgspec.msgpack.encode(hello(invitation)))
        assert not await asyncio.to_thread(plain.poll, 1000)
        plain.close()
        context.term()
        assert hosts.cluster.missing == ["b"]


async def test_nonsense_at_the_door_harms_nobody(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = hosts.invite("b")
        nonsense = Stranger(invitation)
        for message in (b"", b"\x00", b"\xc1" * 1000, msgspec.msgpack.encode({"type": "welcome"})):
            assert await nonsense.ask(message, seconds=0.1) is None
        # the message is larger than the door accepts, so the connection ends
        nonsense.socket.send(b"x" * 1_000_000)
        guest = Stranger(invitation)
        answer = await guest.ask(hello(invitation))
        assert answer is not None
        assert answer["type"] == "welcome"
        guest.close()
        nonsense.close()


async def test_other_versions_are_refused_by_name(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = hosts.invite("b")
        stranger = Stranger(invitation)
        answer = await stranger.ask(hello(invitation, torch="1.0"))
        assert answer is not None
        assert answer["type"] == "refused"
        assert f"torch is {own_versions()['torch']} on the server and 1.0 on the host" in str(answer["reason"])
        stranger.close()


async def test_an_unknown_host_cannot_be_invited(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        with pytest.raises(OrderError, match=r"no host bb; did you mean b\?"):
            hosts.invite("bb")


async def test_a_host_that_leaves_before_the_start_has_to_join_again(
    hosts_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni_pipeline.hosts.cluster.WAITING_SECONDS", 0.1)
    async with waiting(CONFIG, hosts_dir) as hosts:
        cluster = hosts.cluster
        first = hosts.start_agent("b")
        async with asyncio.timeout(JOIN_SECONDS):
            await cluster.gather()
        first.kill()
        await until(lambda: cluster.missing == ["b"])
        hosts.start_agent("b")
        await until(lambda: cluster.missing == [])


# --- the agent ----------------------------------------------------------------------------------------------------


async def test_an_agent_says_why_it_is_refused(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir) as hosts:
        used = hosts.invite("b")
        hosts.invite("b")
        with pytest.raises(StartupError, match=r"The server refuses this host\. The invitation is not valid"):
            await run_agent(used)


async def test_an_agent_with_another_checkpoint_is_refused(hosts_dir: Path) -> None:
    async with waiting(CONFIG, hosts_dir, digest={"config.json": "other"}) as hosts:
        with pytest.raises(StartupError, match=r"the server's checkpoint: config\.json"):
            await run_agent(hosts.invite("b"))
        assert hosts.cluster.missing == ["b"]


async def test_an_agent_ends_if_the_server_does_not_answer(hosts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "ANSWER_SECONDS", 0.2)
    async with waiting(CONFIG, hosts_dir) as hosts:
        invitation = hosts.invite("b")
    with pytest.raises(StartupError, match="does not answer"):
        await run_agent(invitation)


async def test_an_agent_ends_if_the_server_ends_before_its_start(
    hosts_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(agent, "WAITING_SECONDS", 0.1)
    async with waiting(CONFIG, hosts_dir) as hosts:
        running = asyncio.ensure_future(run_agent(hosts.invite("b")))
        async with asyncio.timeout(SECONDS):
            await hosts.cluster.gather()
    async with asyncio.timeout(SECONDS):
        with pytest.raises(StartupError, match="does not answer"):
            await running


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_the_digest_sees_every_file_that_matters(tiny_checkpoint: Path, hosts_dir: Path) -> None:
    whole = digest(str(tiny_checkpoint))
    assert "config.json" in whole
    assert any(name.endswith(".safetensors") for name in whole)
    copy = hosts_dir / "copy"
    copy.mkdir()
    for path in tiny_checkpoint.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("differs")
    assert digest(str(copy)) == whole
    assert different_files(whole, digest(str(copy))) == ""
    config = copy / "config.json"
    config.write_text(config.read_text() + " ")
    weights = next(name for name in whole if name.endswith(".safetensors"))
    with (copy / weights).open("ab") as file:
        file.write(b"\x00")
    assert different_files(whole, digest(str(copy))) == f"config.json, {weights}"


def test_without_a_checkpoint_there_is_nothing_to_compare() -> None:
    assert digest("") == {}


def test_versions_of_packages_are_compared() -> None:
    own = own_versions()
    assert own["omni-pipeline"]
    assert joining.differences(own, own) == []
    assert joining.differences(own, {}) != []
