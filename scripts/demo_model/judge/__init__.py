"""How good the trained model is: held-out questions, and whether its speech is understood."""
