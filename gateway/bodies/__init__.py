"""Reads JSON bodies while they arrive, and bounds their structure and text before they are decoded.

The code here works for every endpoint, and knows no field of the API. The meaning of the fields belongs in
`gateway.api`.
"""
