"""Sends messages between processes: message types, their encoding, sockets, stream numbers, counters.

The modules `keys`, `network` and `remote` are only used if there are other hosts.

The code in this package does not handle messages. Code in `worker` handles messages in worker processes. Code in
`supervision` and `gateway` handles messages in the main process.
"""
