"""The parts of `verify_on_gpu.py`: its checks, and its report."""
