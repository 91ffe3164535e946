"""What `chaos.py` and `soak.py` share: a server of their own, requests with known answers, what is left over."""
