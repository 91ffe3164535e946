"""Loads the bytes of the media items that a request names, within the operator's media policy.

Data URLs, downloads, local files and the checks of their addresses belong in this package. The preprocessing stage
decodes the media.
"""
