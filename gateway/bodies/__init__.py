"""Reads JSON bodies and forms while they arrive, and limits their structure and size before they are decoded.

The code in this package works for every endpoint, and does not depend on the fields of the API. The meaning of the
fields belongs in `gateway.api`.
"""
