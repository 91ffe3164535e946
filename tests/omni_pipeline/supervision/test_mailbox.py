"""Each message that reaches the main process goes to the handler that is registered for its type."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.keys import new_key_pair
from omni_pipeline.wire.messages import Message, Pulse, Shutdown
from omni_pipeline.wire.network import HostLink
from omni_pipeline.wire.transport import make_run_dir


@pytest.fixture
def mailbox(run_root: object) -> Iterator[Mailbox]:
    run_dir = make_run_dir()
    made = Mailbox(run_dir, Codec({}), lambda request_id: None)
    yield made
    made.close()
    shutil.rmtree(run_dir)


def receive(mailbox: Mailbox, message: Message) -> None:
    """Send `message` from `mailbox` to `mailbox` itself, and let `mailbox` handle the message."""
    mailbox.send(message, mailbox.address)
    deadline = time.monotonic() + 10
    while not mailbox.take(1):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_message_goes_to_the_handler_of_its_type(mailbox: Mailbox) -> None:
    pulses: list[Pulse] = []
    others: list[Message] = []
    mailbox.register(Pulse, lambda message, received: pulses.append(message))
    mailbox.register(Shutdown, lambda message, received: others.append(message))
    receive(mailbox, Pulse("shout", 2))
    assert pulses == [Pulse("shout", 2)]
    assert others == []


def test_message_that_nobody_registered_for_is_logged_without_its_content(
    mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        receive(mailbox, Pulse("secret", 2))
    assert caplog.messages == ["received a message for another process: Pulse"]


async def test_a_forgotten_connection_is_not_watched(run_root: object) -> None:
    """If the connection were still watched, the event loop would ignore the next file whose descriptor has the same
    number.
    """
    run_dirs, keys = [make_run_dir(), make_run_dir()], new_key_pair()
    link = HostLink("b", keys, "127.0.0.1", (0, 0), {"b": keys.public}, 5.0)
    near, far = (Mailbox(run_dir, Codec({}), lambda _: None, link) for run_dir in run_dirs)
    loop = asyncio.get_running_loop()
    watched = mock.Mock(wraps=loop.add_reader)
    try:
        near.open()
        with mock.patch.object(loop, "add_reader", watched):
            near.send(Shutdown(), far.remote_address)
        [call] = watched.call_args_list
        near.forget(far.remote_address)
        assert not loop.remove_reader(call.args[0])
    finally:
        near.close()
        far.close()
        for run_dir in run_dirs:
            shutil.rmtree(run_dir)


async def test_a_process_without_an_address_gets_nothing(run_root: Path) -> None:
    """A process on another host has no address until the process has loaded. It loses its address when its host is
    lost.
    """
    directory = run_root / "sockets"
    directory.mkdir()
    mailbox = Mailbox(str(directory), Codec({}), lambda _: None)
    received = []
    mailbox.register(Shutdown, lambda message, _: received.append(message))
    mailbox.send(Shutdown(), "", mailbox.address)
    async with asyncio.timeout(5):
        while not mailbox.take(1):  # noqa: ASYNC110 - the test reads the mailbox itself
            await asyncio.sleep(0.01)
    assert received == [Shutdown()]
    mailbox.close()
    directory.rmdir()
