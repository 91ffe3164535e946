"""Makes random Qwen3-Omni checkpoints: with the real structure and file formats, at a size that runs anywhere."""
