"""Tests the package as users get it: as a wheel in an environment of its own, away from any checkout."""
