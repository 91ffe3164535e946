"""Measures how good the trained model is: by held-out questions, and by how well its speech is understood."""
