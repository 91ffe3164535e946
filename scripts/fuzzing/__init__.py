"""Makes the fuzzer's requests: some are generated from the API's description, others carry damaged media."""
