"""The formats of sound in a session, and the received sound that is not yet in an item."""
