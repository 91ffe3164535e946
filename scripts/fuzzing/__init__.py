"""The fuzzer's requests: generated from the description of the API, and with damaged media."""
