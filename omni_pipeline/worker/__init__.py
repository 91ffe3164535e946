"""The code that runs inside a worker process: start, loop, ranks, pulse, and notes for traces.

Code that starts, watches and restarts workers belongs in `supervision`. The computations of stages belong in `stages`.
"""
