"""The package as users get it: a wheel in an environment of its own, away from any checkout."""
