"""`sgl-omni bench`: sends requests to any server of this API over HTTP, and reports how fast and how steadily the
server answers.

The bench is only a client: it shares no state with a server, and the server's code does not use this package.
"""
