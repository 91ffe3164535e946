"""Contains the tests with fake GPUs (`scripts/fake_gpu`).

`inside` has the code that runs in the child process, one module for each subject; the tests call it and check the
results.
"""
