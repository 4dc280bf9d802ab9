"""What the programs' command lines accept."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Return a whole number above 0; argparse shows why another is refused."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return number
