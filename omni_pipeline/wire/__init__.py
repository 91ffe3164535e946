"""What processes send to each other: message types, their encoding, the sockets, stream numbers, counters.

Nothing here acts on a message: workers do that in `worker`, and the main process in `supervision` and the gateway.
"""
