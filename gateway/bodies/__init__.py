"""Reads JSON bodies while they arrive, within bounds, and before anything is made of them.

Everything here works for any endpoint and knows no field of the API. What the fields of a body mean belongs in
`gateway.api`.
"""
