"""`vigor-trainer` from the outside, where a process of its own is needed to see it."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TRL = """
import sys
sys.modules["trl"] = None
from vigor_trainer.__main__ import main
sys.exit(main(["--help"]))
"""


def test_a_missing_extra_is_named_without_a_stack_trace() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRL], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "vigor-trainer needs trl: pip install 'vigor-rl[trainer]'\n"
