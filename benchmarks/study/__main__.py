"""The effect of each reward on a policy: ``python -m benchmarks.study``.

Makes the base models, trains every variant from every seed, and writes the tables. Finished runs are not repeated, so
an interrupted command resumes; with ``--minutes``, no run begins after that time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic

import torch

from benchmarks.report import Report, Table, finish, new_report
from benchmarks.study.curves import RunCurve
from benchmarks.study.runs import Run, do, files_of, finished, service_of
from benchmarks.study.subjects import SUBJECTS, Subject
from benchmarks.study.tables import STUDENT_T, tables_of


def main(arguments: Sequence[str]) -> Report:
    """Do the missing runs, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    subjects = [_subject(name, options) for name in options.subject or SUBJECTS]
    until = monotonic() + 60 * options.minutes
    for subject in subjects:
        _do_missing(subject, options, until)
    tables = [table for subject in subjects for table in _tables(subject, options.directory)]
    report = new_report("What each reward does to a policy", "benchmarks.study", arguments, torch.device("cpu"), tables)
    finish(report, options.out)
    return report


def _subject(name: str, options: argparse.Namespace) -> Subject:
    subject = SUBJECTS[name]
    return replace(
        subject,
        num_seeds=options.seeds or subject.num_seeds,
        num_steps=options.steps or subject.num_steps,
        num_base_steps=options.base_steps or subject.num_base_steps,
        variants=[variant for variant in subject.variants if variant.name in (options.variant or [variant.name])],
    )


def _runs(subject: Subject) -> list[Run]:
    """Return the runs, ordered by seed, then by variant."""
    return [Run(subject, variant, seed) for seed in range(1, subject.num_seeds + 1) for variant in subject.variants]


def _do_missing(subject: Subject, options: argparse.Namespace, until: float) -> None:
    missing: SimpleQueue[Run] = SimpleQueue()
    for run in _runs(subject):
        if finished(run, options.directory) is None:
            missing.put(run)
    if missing.empty():
        return
    files_of(subject, options.directory)
    with ThreadPoolExecutor(options.lanes) as pool:
        for lane in [pool.submit(_lane, number, subject, missing, options, until) for number in range(options.lanes)]:
            lane.result()


def _lane(number: int, subject: Subject, missing: SimpleQueue[Run], options: argparse.Namespace, until: float) -> None:
    """Do one run after the other against this lane's own service."""
    study, threads = options.directory, options.threads
    model, _ = files_of(subject, study)
    log = study / subject.name / f"service-{number}.log"
    with service_of(model, log, num_threads=threads) as url:
        while monotonic() < until:
            try:
                run = missing.get_nowait()
            except Empty:
                return
            curve = do(run, study, url, num_threads=threads)
            print(f"{run.title}: {_first_and_last(curve)}", flush=True)


def _first_and_last(curve: RunCurve) -> str:
    return f"accuracy {curve.windows[0].accuracy:.3f} -> {curve.last.accuracy:.3f}"


def _tables(subject: Subject, study: Path) -> list[Table]:
    done: dict[str, dict[int, RunCurve]] = {variant.name: {} for variant in subject.variants}
    for run in _runs(subject):
        if (curve := finished(run, study)) is not None:
            done[run.variant.name][run.seed] = curve
    return tables_of(subject, {variant: curves for variant, curves in done.items() if curves})


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="may be repeated (default: all)")
    parser.add_argument("--variant", action="append", help="name of a reward's variant; may be repeated (default: all)")
    parser.add_argument(
        "--seeds", type=int, choices=range(1, max(STUDENT_T) + 1), help="number of seeds (default: the subject's)"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps of a run (default: the subject's)")
    parser.add_argument("--base-steps", type=int, help="steps in which a base model learns (default: the subject's)")
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1e6, help="time after which no run begins (default: no limit)")
    parser.add_argument("--directory", type=Path, default=Path("runs/study"), help="runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
