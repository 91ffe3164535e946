"""Runs the workers from the main process: starts, watches, restarts and stops them, and exchanges messages with them.

The fork server, hang detection and the restart policy belong here. What runs inside a worker belongs in `worker`.
Which stages a worker runs, and on which GPUs, is decided in `deployment`.
"""
