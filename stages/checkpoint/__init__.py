"""What is known of a checkpoint: its sizes, its tensors, its weights, and the memory they take."""
