"""Reports to the main process that a worker's main thread still executes Python code, even during a long step.

While a thread waits for its GPU, the thread uses the CPU all the time (it spins). So another process cannot distinguish
a waiting thread from a thread that computes. But a thread that waits for its GPU is inside a single call of a library,
and executes no Python code. So once a second, another thread of the worker asks the main thread to set a mark. The
interpreter sets the mark between two instructions, with its mechanism for signal handlers. No signal is sent, because a
signal would interrupt system calls of libraries. If the main thread has set the mark, the other thread sends a
`wire.messages.Pulse`. If a call keeps the interpreter's lock, neither of the two threads can run, so no pulse is sent
either.
"""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType

from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Pulse
from omni_pipeline.wire.transport import Outbox

PULSE_SECONDS = 1.0

# The handler is installed for the signal with this number, but the signal is never sent. A worker has no other handler
# for this signal, and the default action of this signal is to do nothing.
_NUMBER = signal.SIGURG


class PulseThread:
    """A thread that sends pulses until `close` is called. Create and close the object on the main thread.

    Args:
        outbox: Socket for the pulses. Only this thread uses and closes the socket.
        home: Endpoint of the main process.
        pulse: The message to send.
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
