"""Contains the functions that run in a child process with fake GPUs. Their arguments and results are JSON values."""
