"""Processes untrusted bytes and long texts in other processes, several at a time, with short work before long work.

Communication with these processes, their start and end, and the order of their work belong in this package. The work
itself belongs in `stages.preprocessing.media` and `stages.preprocessing.conversation`.
"""
