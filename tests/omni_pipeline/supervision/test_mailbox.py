"""Each message that reaches the main process goes to the handler that is registered for its type."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator

import pytest

from omni_pipeline.supervision.mailbox import Mailbox
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Message, Pulse, Shutdown
from omni_pipeline.wire.transport import make_run_dir


@pytest.fixture
def mailbox(run_root: object) -> Iterator[Mailbox]:
    run_dir = make_run_dir()
    made = Mailbox(run_dir, Codec({}), lambda request_id: None)
    yield made
    made.close()
    shutil.rmtree(run_dir)


def receive(mailbox: Mailbox, message: Message) -> None:
    """Let `mailbox` handle `message`, which it sends to itself."""
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
    assert caplog.messages == ["misdirected message: a Pulse"]
