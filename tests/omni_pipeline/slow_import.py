"""A module whose import reports its process id, and then lasts until a signal comes."""

import os
import signal

print(os.getpid(), flush=True)
signal.pause()
