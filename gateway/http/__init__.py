"""Handles general HTTP: connections, request ids, API keys, origins, error bodies and event streams.

Everything here works for any endpoint. What a request to an endpoint means belongs in `gateway.api` and
`gateway.answers`.
"""
