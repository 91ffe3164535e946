"""Contains the code that the scripts that try a server share: the server, requests with known answers, and checks."""
