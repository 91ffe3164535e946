"""Compares the rounding errors of each stage in bfloat16 with limits measured on the reference.

Everything is forced: each stage gets inputs recorded from the reference in float32, or the reference is forced through
a server's answer, so that a rounding difference in one token does not change all later tokens. The first difference of
two free answers says little: on a random checkpoint one token in ten is nearly a tie in bfloat16.
"""
