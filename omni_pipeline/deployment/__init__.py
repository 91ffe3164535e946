"""Decides, before anything starts, what runs where: devices, GPUs of each stage, worker grouping, memory budgets.

Finding and checking the checkpoint belongs here too, and so do the changes to suggest if a plan does not fit. Running
the plan belongs in `supervision`, and showing it in `commands`.
"""
