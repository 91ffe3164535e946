"""Requests that nobody would send in earnest: made up from the description of the API, and with damaged media."""
