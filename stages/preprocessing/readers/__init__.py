"""Sends untrusted bytes and long texts to other processes, the readers. Several readers work at the same time, and
short work goes before long work.

This package starts and ends the readers, communicates with the readers, and decides the order of their work. The work
itself belongs in `stages.preprocessing.media` and `stages.preprocessing.conversation`.
"""
