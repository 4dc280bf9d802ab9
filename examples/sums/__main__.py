"""Makes a small model that adds with mistakes, and questions for it: ``python -m examples.sums DIRECTORY``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from examples.sums.making import MISTAKES, NUM_HELD_OUT, NUM_STEPS, make_sums
from vigor_trainer.flags import positive


def main() -> None:
    """Make the directory that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m examples.sums", description=__doc__)
    parser.add_argument("directory", type=Path, help="where model, questions.jsonl and held-out.jsonl are written")
    parser.add_argument(
        "--mistakes",
        choices=MISTAKES,
        default="random-slips",
        help="mistakes at random, or one that is more frequent than the truth (default: %(default)s)",
    )
    parser.add_argument("--steps", type=positive, default=NUM_STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--held-out", type=positive, default=NUM_HELD_OUT, help="held-out sums (default: %(default)s)")
    given = parser.parse_args()
    disable_progress_bar()  # for files that are written within a second
    make_sums(given.directory, given.mistakes, num_steps=given.steps, num_held_out=given.held_out, console=Console())


if __name__ == "__main__":
    main()
