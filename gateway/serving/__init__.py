"""The server as a whole: its endpoints put together, health, warm-up, start and stop.

Nothing here handles a chat request itself; that is in `gateway.answers`.
"""
