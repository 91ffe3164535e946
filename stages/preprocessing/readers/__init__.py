"""Does the work on untrusted bytes and long texts in other processes, several at a time, short work before long.

The border to these processes, their life and the order of their work belong here. What they compute belongs in
`stages.preprocessing.media` and `stages.preprocessing.conversation`.
"""
