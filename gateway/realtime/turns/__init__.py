"""Finds where the turns of a user begin and end in the incoming sound."""
