"""Random Qwen3-Omni checkpoints: the real structure and file formats at a size that runs anywhere."""
