"""A module whose import tells its process id and then takes until a signal comes."""

import os
import signal

print(os.getpid(), flush=True)
signal.pause()
