"""What runs in a child process under fake GPUs; each function takes and returns what JSON can hold."""
