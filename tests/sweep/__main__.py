"""``python -m tests.sweep``: every model type of transformers against a loop in float64.

Prints a line for each family, then a summary. Exits with 1 if a norm is wrong, a model ends the engine, a model type
has no tiny model, or docs/models.md says something else than was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.support.model_table import PAGE
from tests.sweep.check import Outcome, check_quietly
from tests.sweep.families import Family, families
from tests.sweep.isolation import DiedError, in_own_process, preload
from tests.sweep.page import row, rows, write
from tests.sweep.report import failures, line, summary


def main() -> int:
    """Sweep, print, and return the exit status."""
    options = _options()
    known = families()
    unknown = [name for name in options.family if name not in known]
    if unknown:
        print(f"no such family: {', '.join(unknown)}", file=sys.stderr)
        return 2
    outcomes = []
    for outcome in _sweep([known[name] for name in options.family or known], options):
        outcomes.append(outcome)
        print(line(outcome), flush=True)
    print(summary(outcomes))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    if options.write:
        write(outcomes)
    return int(bool(failures(outcomes)) or _page_differs(outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--family", nargs="+", default=[], metavar="NAME", help="these alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there")
    parser.add_argument("--write", action="store_true", help="write the table of docs/models.md")
    parser.add_argument("--in-process", action="store_true", help="do not save and load the models")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="families at once")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="for each family")
    return parser.parse_args()


def _sweep(chosen: Sequence[Family], options: argparse.Namespace) -> Iterator[Outcome]:
    preload("tests.sweep.check")
    checked = partial(check_quietly, is_loaded=not options.in_process)
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(_isolated, checked, family, options.timeout) for family in chosen]
        for future in as_completed(futures):
            yield future.result()


def _isolated(checked: partial[Outcome], family: Family, timeout_seconds: float) -> Outcome:
    """A model that hangs, or ends its process, is one line among the others."""
    try:
        return in_own_process(checked, family, timeout_seconds)
    except DiedError as error:
        return Outcome(family.name, family.architecture, "crashed", str(error))


def _page_differs(outcomes: Sequence[Outcome]) -> bool:
    on_page = rows(PAGE.read_text())
    differing = [outcome.family for outcome in outcomes if on_page.get(outcome.family) != row(outcome)]
    if differing:
        print(f"docs/models.md says otherwise of {', '.join(differing)}: sweep all with --write")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
