"""The server: its endpoints put together, health, warm-up, start and stop."""
