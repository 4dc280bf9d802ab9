"""How long a score waits for its weights: ``python -m benchmarks.overlap``.

The real trainer trains against the real service, once for each length of completions. Weights are published while
completions are generated; if the publication ends after the generation, the score waits for the difference.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.models import save_random_weights
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.workloads import parse_numbers
from tests.support.service_process import service_process
from vigor_trainer.monitoring.records import RoundRecord, read_records

_COLUMNS = {
    "tokens": ("completions of up to", "{}"),
    "rounds": ("rounds", "{}"),
    "sent_mb": ("sent, MB", "{:.0f}"),
    "generate_seconds": ("generate, s", "{:.2f}"),
    "publish_seconds": ("publish meanwhile, s", "{:.2f}"),
    "wait_seconds": ("a score waits, s", "{:.3f}"),
    "longest_wait_seconds": ("longest wait, s", "{:.3f}"),
    "score_seconds": ("score, s", "{:.2f}"),
}
_SETTINGS = {
    "dataset": "addition",
    "num_generations": "4",
    "per_device_train_batch_size": "8",
    "learning_rate": "1e-6",
    "lr_scheduler_type": "constant",
    "beta": "0",
    "bf16": "false",
    "use_cpu": "true",
    "save_strategy": "no",
    "report_to": "none",
}


def main(arguments: Sequence[str]) -> Report:
    """Train, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as directory:
        model = [] if options.model is None else ["--model", str(_checkpoint(options.model, Path(directory)))]
        with service_process(Path(directory), *model) as service:
            url = str(service.http.base_url)
            rows = [_row(url, model, length, options.steps, Path(directory)) for length in options.lengths]
    notes = [
        f"{options.model or 'the embedded model'} in float32, two prompts with four completions each; every step "
        "publishes all weights; medians over the rounds that did; trainer and service share the machine"
    ]
    device = torch.device("cpu")
    report = new_report("Overlap", "benchmarks.overlap", arguments, device, [Table("rounds", _COLUMNS, rows)], notes)
    finish(report, options.out)
    return report


def _checkpoint(shape: str, directory: Path) -> Path:
    save_random_weights(shape, directory / "checkpoint")
    return directory / "checkpoint"


def _row(url: str, model: Sequence[str], num_tokens: int, steps: int, directory: Path) -> dict[str, Cell]:
    output = directory / f"run-{num_tokens}"
    settings = _SETTINGS | {
        "reward_url": url,
        "max_completion_length": str(num_tokens),
        "max_steps": str(steps),
        "output_dir": str(output),
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    subprocess.run([sys.executable, "-m", "vigor_trainer", *model, *flags], check=True, stdout=sys.stderr)
    published = [record for record in read_records(output) if record.sent_bytes]
    return {
        "tokens": num_tokens,
        "rounds": len(published),
        "sent_mb": _median(published, "sent_bytes") / 1e6,
        **{name: _median(published, name) for name in _COLUMNS if name.endswith("_seconds") and "longest" not in name},
        "longest_wait_seconds": max(record.wait_seconds for record in published),
    }


def _median(records: Sequence[RoundRecord], name: str) -> float:
    return median(getattr(record, name) for record in records)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--model", help="a shape of benchmarks/models.py (default: the embedded model)")
    parser.add_argument("--lengths", type=parse_numbers, default=[2, 16, 64], help="most tokens of a completion")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of a run (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
