"""Carries messages between processes: message types, their encoding, sockets, stream numbers, counters.

Nothing here acts on a message. Workers handle messages in `worker`, the main process in `supervision` and the gateway.
"""
