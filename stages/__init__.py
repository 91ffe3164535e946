"""What is particular to Qwen3-Omni: one module or package for each stage, and the graph they form."""
