"""An argument parser that reports an error in one line, with the known name that is spelled most like a wrong one."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from vigor_client.schemas.nearest_name import did_you_mean

WRONG_USAGE = 2
_WORDING = {"the following arguments are required:": "give", "unrecognized arguments:": "too many arguments:"}
_NUMBER = re.compile(r"-\.?\d")


class CommandParser(ArgumentParser):
    """An ArgumentParser that ends with one line and exit code 2 where the arguments are wrong.

    Set ``commands`` to the names of the commands on the parser that reads which command to run.
    """

    commands: Sequence[str] = ()

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - argparse overloads it
        self,
        args: Sequence[str] | None = None,
        namespace: Any = None,  # noqa: ANN401 - as argparse has it
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, but report unknown arguments before missing ones."""
        given = list(sys.argv[1:] if args is None else args)
        self._refuse_unknown(takewhile(lambda argument: argument != "--", given))
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        said = " ".join(message.removeprefix("argument ").split())
        for argparses, ours in _WORDING.items():
            said = said.replace(argparses, ours)
        self.exit(WRONG_USAGE, f"{self.prog}: {said} (see {self.prog} --help)\n")

    def _refuse_unknown(self, arguments: Iterable[str]) -> None:
        known = self._option_string_actions
        for argument in arguments:
            name = argument.partition("=")[0]
            if _is_option(name) and name not in known:
                self.error(f"unknown option {name}{did_you_mean(name, known)}")
            if self.commands and not _is_option(name):
                self._refuse_unknown_command(name)
            if self.commands:
                return  # the rest is the command's
        if self.commands:
            self._refuse_no_command()

    def _refuse_unknown_command(self, name: str) -> None:
        if name not in self.commands:
            self.error(f"unknown command {name}{did_you_mean(name, self.commands)}")

    def _refuse_no_command(self) -> NoReturn:
        self.print_help(sys.stderr)
        self.exit(WRONG_USAGE, f"\n{self.prog}: give a command: {', '.join(self.commands)}\n")


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a parser of these names, whose error lists them and the nearest one."""

    def parse(text: str) -> str:
        if text not in names:
            raise ArgumentTypeError(f"{text!r} is none of {', '.join(names)}{did_you_mean(text, names)}")
        return text

    return parse


def _is_option(argument: str) -> bool:
    return len(argument) > 1 and argument.startswith("-") and not _NUMBER.match(argument)
