"""The modules that workers share by fork are really imported before the fork."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import stages.sglang_engine.preload
wanted = ["sglang.srt.managers.scheduler", "stages.sglang_engine.models.thinker", "stages.sglang_engine.engine"]
missing = [name for name in wanted if name not in sys.modules]
assert not missing, missing
"""


def test_an_engine_finds_its_imports_done() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=True)
