"""Tests the package as users get it: as a wheel in a separate environment, outside of any checkout."""
