"""The HTTP API as data: what a request body may contain, and what responses look like.

Schema, validation, defaults, conversion and the OpenAPI description belong here. Nothing here waits for a pipeline or
handles a connection.
"""
