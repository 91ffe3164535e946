"""`sgl-omni bench`: sends load to any server of this API over HTTP, and reports how fast and how steadily it answers.

It is a client only: it shares no state with a server, and the server does not use it.
"""
