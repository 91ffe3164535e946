"""Builds the server from its endpoints, starts and stops it, warms it up and reports its health.

The code that handles a chat request is in `gateway.answers`.
"""
