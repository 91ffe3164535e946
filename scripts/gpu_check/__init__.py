"""The parts of `verify_on_gpu.py`: what is checked, and how it is written down."""
