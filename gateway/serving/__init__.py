"""Builds the server from its endpoints, starts and stops it, warms it up and reports its health.

Nothing here handles a chat request itself; that is in `gateway.answers`.
"""
