"""Reports its process id when it is imported. The import then lasts until a signal comes."""

import os
import signal

print(os.getpid(), flush=True)
signal.pause()
