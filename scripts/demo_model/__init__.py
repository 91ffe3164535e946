"""The recipe of the demo checkpoint: a small model that really sees, hears and speaks, in a narrow world."""
