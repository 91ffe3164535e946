"""What bfloat16 may do to each stage: measured on the reference, and held against the stages under test.

Everything is forced: each stage gets what the reference in float32 recorded, or the reference is forced through the
answer of a server, so that a rounding difference in one token does not change all that follow. The first difference of
two free answers says little: on a random checkpoint one token in ten is nearly a tie in bfloat16.
"""
