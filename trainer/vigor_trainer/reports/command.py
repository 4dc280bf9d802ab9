"""`vigor-trainer report RUN…`: one page of one or several runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vigor_trainer.flags import positive
from vigor_trainer.reports.page import MAX_COMPLETIONS, write_report
from vigor_trainer.reports.runs import read_runs
from vigor_trainer.reports.verdict import verdict


def main(argv: Sequence[str]) -> None:
    """Write the page, and say where it is.

    Raises:
        InvalidRunError: a directory that is not a run, or not a complete one.
        OSError: the page cannot be written.
    """
    arguments = _parser().parse_args(argv)
    runs = read_runs(arguments.run)
    num_shown = write_report(arguments.output, runs, title=arguments.title, max_completions=arguments.max_completions)
    print(verdict(runs).title)
    size = arguments.output.stat().st_size
    num_completions = sum(len(group.samples) for run in runs for group in run.groups)
    print(f"{arguments.output}: {num_shown} of {num_completions} completions, {size / 1e6:.1f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vigor-trainer report", description="Write one page of plots and completions of one or several runs."
    )
    parser.add_argument("run", nargs="+", type=Path, help="Directory of a run: its --output_dir")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="The page (default: %(default)s)")
    parser.add_argument("--title", help="Title of the page; default: what the numbers say of the runs")
    parser.add_argument(
        "--max_completions",
        type=positive,
        default=MAX_COMPLETIONS,
        help="Maximum number of completions in the page with their text (default: %(default)s); curves are of all",
    )
    return parser
