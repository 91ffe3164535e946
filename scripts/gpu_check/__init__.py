"""Contains the checks and the report of `verify_on_gpu.py`, and the checks for a bare machine (`bare.py`)."""
