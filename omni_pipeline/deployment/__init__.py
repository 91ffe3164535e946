"""Decides, before anything starts, where each stage runs: its device, GPUs, worker and memory budget.

Finding and checking the checkpoint belongs here too, and so does the search for changes that make a plan fit.
Running the plan belongs in `supervision`, and showing it in `commands`.
"""
