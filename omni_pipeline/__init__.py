"""The framework under omni-pipeline: it starts worker processes, connects their stages, and keeps them running.

Everything here works with any stage graph. What belongs to one model is in `stages`, and what belongs to HTTP is in
`gateway`; the framework imports neither. Modules directly in this folder are the command line, the service as a whole,
and small helpers that every package may use.
"""

__version__ = "0.1.0"
