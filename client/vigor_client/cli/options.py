"""The command line's options: names, ranges, defaults and helps. Knows nothing about what the commands do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, TypeVar, get_args

from vigor_client._version import __version__
from vigor_client.cli.command_parser import CommandParser, one_of
from vigor_client.client import DEFAULT_TIMEOUT_SECONDS, DEFAULT_URL, MAX_TIMEOUT_SECONDS, service_address
from vigor_client.schemas.common import MAX_WEIGHT_VERSION
from vigor_client.schemas.engines import MAX_ENGINES
from vigor_client.schemas.scoring import (
    DEFAULT_COMPUTE,
    MAX_GROUPS,
    MAX_WAIT_SECONDS,
    ComputeName,
    RewardName,
    TieRule,
    TruncatedRule,
)

_T = TypeVar("_T", int, float)
Command = Callable[[argparse.Namespace], int]

DEFAULT_READY_TIMEOUT_SECONDS = 600.0


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser. The parsed arguments have the function of the chosen command as ``run``."""
    parser = CommandParser(prog="vigor", description="Talk to a VIGOR scoring service.", allow_abbrev=False)
    parser.commands = tuple(_COMMANDS)
    parser.add_argument("--version", action="version", version=f"vigor {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, *groups) in _COMMANDS.items():
        command = subparsers.add_parser(name, help=text, allow_abbrev=False)
        command.set_defaults(run=commands[name])
        for add_options in (*groups, _add_connection):
            add_options(command)
    return parser


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(refuse=parser.error)
    parser.add_argument(
        "input", type=Path, metavar="IN.jsonl", help="input file, one group per line; - is standard input"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT.jsonl",
        help="output file, written as OUT.jsonl.partial until it is complete (default: stdout)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an OUT.jsonl.partial of the same input, weights and options"
    )
    parser.add_argument(
        "--groups-per-request",
        type=_number(int, 1, MAX_GROUPS),
        default=16,
        metavar="N",
        help="maximum number of groups in one request (default: 16)",
    )
    parser.add_argument(
        "--weight-version",
        type=_number(int, 0, MAX_WEIGHT_VERSION),
        metavar="N",
        help="version of the weights to score with (default: the version that is served)",
    )
    parser.add_argument(
        "--wait-seconds",
        type=_number(float, 0, MAX_WAIT_SECONDS),
        default=0.0,
        metavar="S",
        help="seconds to wait for that version (default: 0)",
    )
    parser.add_argument(
        "--compute",
        nargs="+",
        **_choice(ComputeName),
        default=list(DEFAULT_COMPUTE),
        help="parts of each score; without norm no gradient is computed (default: norm signals)",
    )
    parser.add_argument(
        "--reward", **_choice(RewardName), default="vigor", help="value that is ranked (default: vigor)"
    )
    parser.add_argument(
        "--ties", **_choice(TieRule), default="average", help="rule for equal values (default: average)"
    )
    parser.add_argument(
        "--truncated",
        **_choice(TruncatedRule),
        default="score",
        help="rule for truncated completions (default: score)",
    )
    parser.add_argument("--return-token-ids", action="store_true", help="also write the token ids that were scored")


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="directory of a saved model: safetensors, whole or sharded"
    )
    parser.add_argument(
        "--weight-version",
        type=_number(int, 0, MAX_WEIGHT_VERSION),
        required=True,
        metavar="N",
        help="new version of the weights",
    )


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "num_engines", type=_number(int, 1, MAX_ENGINES), metavar="N", help=f"number of engines, at most {MAX_ENGINES}"
    )


def _add_ready_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ready-timeout-seconds",
        type=_number(float, 0, inf),
        default=DEFAULT_READY_TIMEOUT_SECONDS,
        metavar="S",
        help=f"seconds to wait for a service, or engines, that load (default: {DEFAULT_READY_TIMEOUT_SECONDS:g})",
    )


def _add_connection(parser: argparse.ArgumentParser) -> None:
    url, _ = service_address(None, None)
    parser.add_argument("--url", default=url, help=f"URL of the service (default: VIGOR_URL, else {DEFAULT_URL})")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file that holds the API key (default: the key in VIGOR_API_KEY, if set)",
    )
    parser.add_argument(
        "--timeout-seconds",
        type=_number(float, 0.1, MAX_TIMEOUT_SECONDS),
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="S",
        help=f"seconds that the service may be silent (default: {DEFAULT_TIMEOUT_SECONDS:g})",
    )


def _choice(names: object) -> dict[str, Any]:
    """Return the keyword arguments of ``add_argument`` for an option that takes one of the names of a Literal."""
    choices: tuple[str, ...] = get_args(names)
    return {"type": one_of(choices), "metavar": "{" + ",".join(choices) + "}"}


def _number(kind: type[_T], low: float, high: float) -> Callable[[str], _T]:
    """Return a parser of numbers from ``low`` to ``high``, whose error names the range."""

    def parse(text: str) -> _T:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            what = "whole number" if kind is int else "number"
            bounds = f"of {low:g} or more" if high == inf else f"from {low:g} to {high:.17g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what} {bounds}")
        return number

    return parse


_COMMANDS: Mapping[str, tuple[str, *tuple[Callable[[argparse.ArgumentParser], None], ...]]] = {
    "score": ("score a JSONL file, one group per line", _add_score, _add_quiet, _add_ready_timeout),
    "status": ("show model, weights and queue of a service",),
    "wait": ("wait until a service is ready", _add_ready_timeout),
    "push": ("publish the weights of a checkpoint directory", _add_push, _add_quiet, _add_ready_timeout),
    "scale": ("change the number of engines, and wait until they are up", _add_scale, _add_ready_timeout),
}
