"""Runs one worker process from the inside: its start, its loop, its ranks, its pulse, its notes for traces.

Starting, watching and restarting workers belongs in `supervision`. What a stage computes belongs in `stages`.
"""
