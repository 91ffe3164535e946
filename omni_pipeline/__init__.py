"""The framework of omni-pipeline. Starts worker processes, connects their stages, and keeps the workers running.

The framework works with any stage graph. Code for one model is in `stages`, and code for HTTP is in `gateway`. The
framework does not import these two packages. The modules directly in this folder are the command line, the service, and
small helpers that every package may use.
"""

__version__ = "0.1.0"
