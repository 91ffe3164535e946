"""Shared code of the checks for a bare machine: findings, time-limited children, measuring, random weights."""
