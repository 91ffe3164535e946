"""Decides, before the first process starts, where each stage runs: its device, GPUs, worker and memory budget.

Code that finds and checks the checkpoint belongs in this package too. The search for changes that make a plan fit also
belongs here. Code that runs the plan belongs in `supervision`. Code that shows the plan belongs in `commands`.
"""
