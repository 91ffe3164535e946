"""Runs the workers from the main process. Starts, watches, restarts and stops workers, and exchanges messages with
them.

The fork server, hang detection and the restart policy belong in this package. Code that runs inside a worker belongs in
`worker`. `deployment` decides which stages a worker runs, and on which GPUs.
"""
