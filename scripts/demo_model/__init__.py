"""Trains the demo checkpoint: a small model that really understands pictures and speech and answers with speech, for a
few kinds of content.
"""
