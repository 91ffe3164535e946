"""Contains the functions that run in a child process under fake GPUs; they take and return JSON values."""
