"""Defines the data of the HTTP API: the contents of request bodies, and the form of responses.

Schema, validation, defaults, conversion and the OpenAPI description belong in this package. No code in this package
waits for a pipeline or handles a connection.
"""
