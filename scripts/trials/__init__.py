"""Contains the code that `chaos.py` and `soak.py` share: a server to try, requests with known answers, and checks."""
