"""Compares the rounding errors of each stage in bfloat16 with limits measured on the reference.

If the code under test and the reference each generated their own tokens, a rounding difference in one token would
change all later tokens. So each stage gets inputs recorded from the reference in float32, or the reference is forced to
generate a server's answer. If two answers are generated freely, the position of their first difference says little. On
a random checkpoint, the two best candidates are nearly equal in bfloat16 for one token in ten.
"""
