"""Who sits where: devices, GPU sets, worker grouping and memory. Not: running it (supervision)."""
