"""What every command does with its flags: an error has one line, and a number out of its range is refused by name."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from typing import NoReturn


class OneLineParser(ArgumentParser):
    """Reports an error in one line: the usage text of TRL has hundreds."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """Return a whole number above 0; argparse shows why another is refused."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("give 1 or more")
    return number


def refuse_less(arguments: object, least: float, *names: str) -> None:
    """Raise a ValueError that names the first flag whose number is smaller; None is no number, and passes."""
    for name in names:
        number = getattr(arguments, name)
        if number is not None and not number >= least:
            raise ValueError(f"--{name} is {number:g}: give {least:g} or more")


def refuse_not_above_zero(arguments: object, *names: str) -> None:
    """Raise a ValueError that names the first flag whose number is 0 or less."""
    for name in names:
        if not getattr(arguments, name) > 0:
            raise ValueError(f"--{name} is {getattr(arguments, name):g}: give more than 0")
