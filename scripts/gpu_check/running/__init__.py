"""What the checks for a bare machine have in common: findings, bounded children, measuring, random weights."""
