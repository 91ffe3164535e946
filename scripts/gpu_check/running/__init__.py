"""Contains code that the checks for a bare machine share: findings, children with a time limit, measuring, random
weights.
"""
