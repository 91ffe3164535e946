"""Contains the tests with fake GPUs (`scripts/fake_gpu`).

The package `inside` has the code that runs in the child process, with one module for each subject. The tests call this
code and check the results.
"""
