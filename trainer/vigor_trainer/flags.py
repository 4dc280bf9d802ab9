"""Flag handling of all commands: an error has one line, and a number out of range is refused with the flag's name."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from typing import NoReturn

from vigor_client.schemas.nearest_name import did_you_mean


class OneLineParser(ArgumentParser):
    """A parser that reports an error in one line, since the usage text of TRL has hundreds of lines."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def unknown_options(unknown: Sequence[str], parser: ArgumentParser) -> str:
    """Return one line that names the unknown options, and the known option that is spelled most like the first."""
    first = unknown[0].partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]  # pyright: ignore[reportPrivateUsage] - argparse has no public way
    return f"unknown option {' '.join(unknown)}{did_you_mean(first, known)}"


def positive(text: str) -> int:
    """Return a whole number above 0; otherwise raise an error that argparse shows."""
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("give 1 or more")
    return number


def refuse_less(arguments: object, least: float, *names: str) -> None:
    """Raise a ValueError that names the first flag whose number is less than ``least``; None passes."""
    for name in names:
        number = getattr(arguments, name)
        if number is not None and not number >= least:
            raise ValueError(f"--{name} is {number:g}: give {least:g} or more")


def refuse_not_above_zero(arguments: object, *names: str) -> None:
    """Raise a ValueError that names the first flag whose number is 0 or less."""
    for name in names:
        if not getattr(arguments, name) > 0:
            raise ValueError(f"--{name} is {getattr(arguments, name):g}: give more than 0")
