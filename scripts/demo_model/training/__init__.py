"""Provides the common parts of all training runs: state, learning rate and command line."""
