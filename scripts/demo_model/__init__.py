"""The recipe of the small checkpoint that really sees, hears and speaks, in a narrow world."""
