"""Contains the functions that run in a child process under fake GPUs. Their arguments and results are JSON values."""
