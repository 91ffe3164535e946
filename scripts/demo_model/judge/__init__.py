"""Measures how good the trained model is: how many held-out questions it answers correctly, and how well its speech is
understood.
"""
