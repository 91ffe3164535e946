"""Holds code that the checks for a bare machine share: findings, time-limited children, measuring, random weights."""
