"""Contains the hostile clients of `siege.py`, which run in a separate process.

Each kind of client is one function, which makes the client's files and bodies and returns one round of its attack. The
kinds are grouped by the thing that they misuse: the body, the media, or the connection.
"""
