"""Whether answers are right and voices clear, on the one checkpoint that was trained: demo/qwen3-omni-demo."""
