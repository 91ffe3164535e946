"""Reads JSON bodies while they arrive, and bounds their structure and text before they are decoded.

The code in this package works for every endpoint, and does not depend on the fields of the API. The meaning of the
fields belongs in `gateway.api`.
"""
