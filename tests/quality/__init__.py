"""Whether answers are right and voices clear, on the one checkpoint that is trained: the demo model."""
