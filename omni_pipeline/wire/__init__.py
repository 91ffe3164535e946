"""Carries messages between processes: message types, their encoding, sockets, stream numbers, counters.

The code in this package does not act on messages. Workers handle messages in `worker`. The main process handles
messages in `supervision` and in `gateway`.
"""
