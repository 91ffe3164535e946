"""Starts the speech server. This is another name for ``sgl-omni serve``, with the same flags.

    python scripts/run_qwen3_omni_speech_server.py --model-path Qwen/Qwen3-Omni-30B-A3B-Instruct \\
        --gpu-thinker 0 --gpu-talker 1 --gpu-code-predictor 1 --gpu-code2wav 1 --port 8008
"""

from __future__ import annotations

import sys

from omni_pipeline.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    main()
