"""What `chaos.py` and `soak.py` share: a server to try, requests with known answers, and the search for leftovers."""
