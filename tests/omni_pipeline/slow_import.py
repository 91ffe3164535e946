"""A module that reports the process id when it is imported. The import then waits for a signal."""

import os
import signal

print(os.getpid(), flush=True)
signal.pause()
