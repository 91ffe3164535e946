"""Sends untrusted bytes and long texts to other processes, the readers. Several readers work at the same time, and
short work goes before long work.

Communication with these processes, their start and end, and the order of their work belong in this package. The work
itself belongs in `stages.preprocessing.media` and `stages.preprocessing.conversation`.
"""
