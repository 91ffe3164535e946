"""Contains the common code of the scripts that test a server under load and faults: the server, requests with known
answers, and checks.
"""
