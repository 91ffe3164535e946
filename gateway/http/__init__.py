"""Handles general HTTP: connections, request ids, API keys, origins, error bodies and event streams.

The code in this package works for any endpoint. Code that depends on the endpoint belongs in `gateway.api` and
`gateway.answers`.
"""
