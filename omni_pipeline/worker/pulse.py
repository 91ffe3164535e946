"""Tells the main process, however long a step lasts, that a worker's main thread still executes Python code.

A thread that waits for its GPU spins, so that from outside it looks like one that computes. But it is inside of one
call into a library, and executes no Python. So once a second another thread asks the main one to note that it was here.
The interpreter does that between two instructions, as it handles signals; no signal is sent, since that would interrupt
system calls of libraries. Where the main thread has noted it, a `wire.Pulse` goes out. In a call that keeps the
interpreter's lock neither thread gets on, which comes to the same.
"""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType

from omni_pipeline.wire.messages import Codec, Pulse
from omni_pipeline.wire.transport import Outbox

PULSE_SECONDS = 1.0

# Only its number is used, for the handler; nothing else in a worker handles it, and by itself it does nothing.
_NUMBER = signal.SIGURG


class PulseThread:
    """Sends pulses until it is closed. Make it, and close it, on the main thread.

    Args:
        outbox: For this thread alone, which closes it.
        home: Endpoint of the main process.
        pulse: What to send.
    """

    def __init__(self, outbox: Outbox, home: str, pulse: Pulse) -> None:
        self._outbox = outbox
        self._home = home
        self._pulse = pulse
        self._moved = False
        self._closing = threading.Event()
        signal.signal(_NUMBER, self._note)
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()
        signal.signal(_NUMBER, signal.SIG_DFL)

    def _run(self) -> None:
        frames = Codec({}).encode(self._pulse)
        while not self._closing.is_set():
            self._moved = False
            _thread.interrupt_main(_NUMBER)
            self._closing.wait(PULSE_SECONDS)
            if self._moved:
                self._outbox.send(self._home, frames)
        self._outbox.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._moved = True
