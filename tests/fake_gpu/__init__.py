"""Tests under GPUs that are not there (`scripts/fake_gpu`).

`inside` holds what runs in the child process, one module for each subject; the tests ask it and judge the answers.
"""
