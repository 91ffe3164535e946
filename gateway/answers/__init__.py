"""Handles one chat request, from its body to its whole or streamed answer.

Collecting, formatting and measuring the answer of one request belongs here. What the body and the answer may contain
is defined in `gateway.api`; code that concerns all requests together, such as admission, is outside this folder.
"""
