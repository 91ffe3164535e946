"""Answers of realtime sessions are interrupted at random moments: nothing remains, and later answers are right."""

from __future__ import annotations

import interrupt

from tests.server import Server


def test_interruptions_leave_nothing_behind(speaker: Server) -> None:
    assert interrupt.main(["--url", speaker.url, "--count", "24", "--sessions", "3", "--seed", "7"]) == 0
