"""`vigor-trainer`: parse, train, and turn every known failure into one message and an exit code.

Exit codes: 0 trained and saved; 1 the run stopped, and no step used guessed rewards; 2 the command line cannot be run;
130 interrupted. Any other error after the first step has begun is a fault of this program or of TRL, and shows its
traceback.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from types import ModuleType

from vigor_trainer.config.help import ALL_FLAG, HELP_FLAGS, own_help

EXIT_STOPPED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

TRAIN = "vigor_trainer.train"
FIRST_CHECKS = "vigor_trainer.config.first_checks"
COMMANDS: dict[str, str] = {
    "eval": "vigor_trainer.evaluation.command",
    "audit": "vigor_trainer.audit.command",
    "report": "vigor_trainer.reports.command",
}
"""The commands other than training, each with the module whose ``main`` takes the flags after its name."""
SAMPLING = (TRAIN, COMMANDS["eval"], COMMANDS["audit"])
"""The commands that take a model and a dataset."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is not an error
    # TRL 1.16 uses names that transformers 5.23 deprecates, in every run, and the user cannot avoid it.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        return _refused("give --reward-url and --dataset (see vigor-trainer --help)")
    if given[0] in COMMANDS:
        return _run(COMMANDS[given[0]], given[1:])
    if not given[0].startswith("-"):
        return _refused(_unknown_command(given[0]))
    if (answer := _answered_at_once(given)) is not None:
        print(answer, end="")
        return 0
    return _run(TRAIN, ["--help" if flag == ALL_FLAG else flag for flag in given])


def _refused(reason: str) -> int:
    print(f"vigor-trainer: {reason}", file=sys.stderr)
    return EXIT_USAGE


def _unknown_command(name: str) -> str:
    from vigor_client.schemas.nearest_name import did_you_mean

    return f"unknown command {name}{did_you_mean(name, COMMANDS)} (see vigor-trainer --help)"


def _answered_at_once(given: Sequence[str]) -> str | None:
    """Return the output of `--help` and `--version`, which needs none of the libraries that training needs."""
    if "--version" in given:
        return f"vigor-trainer {version('vigor-rl')}\n"
    return own_help() if any(flag in given for flag in HELP_FLAGS) else None


def _run(module: str, argv: Sequence[str]) -> int:
    from vigor_client import UnsupportedAdapterError, VigorError
    from vigor_client.integrations.trl.errors import UnsupportedTrlError
    from vigor_trainer import errors

    of_the_input = (errors.InvalidModelError, errors.InvalidRunError, errors.InvalidTaskError)
    try:
        if module in SAMPLING:
            _imported(FIRST_CHECKS).check_command_line(argv)
        _imported(module).main(argv)
    except errors.InterruptedRunError as error:
        print(f"\nvigor-trainer: {error}", file=sys.stderr)  # below the progress bar
        return EXIT_INTERRUPTED
    except (*of_the_input, errors.UnsupportedSettingError, UnsupportedAdapterError, UnsupportedTrlError) as error:
        return _stopped(error, EXIT_USAGE)
    except (errors.TrainerError, VigorError, OSError) as error:  # OSError: the disk is full, a directory was removed
        return _stopped(error, EXIT_STOPPED)
    except KeyboardInterrupt:
        print("vigor-trainer: interrupted before the first step; nothing was saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _imported(module: str) -> ModuleType:
    from vigor_trainer.errors import UnsupportedSettingError

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = "pip install '.[trainer]' in a checkout of vigor-rl"
        raise UnsupportedSettingError(f"{error.name} is not installed: {hint}") from error


def _stopped(error: Exception, exit_code: int) -> int:
    print(f"vigor-trainer stopped: {error}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
