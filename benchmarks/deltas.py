"""Publishing every training step as a delta: ``python -m benchmarks.deltas``.

A model is trained with AdamW on VIGOR's own rewards of a fixed group: weights in bfloat16, masters in
float32. Each step is published to the real service, which serves bfloat16, as changes relative to the previous step.
The digest in the service's answer is compared with one computed from the trainer's tensors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.models import load_subject, save_random_weights
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.workloads import Workload
from tests.support.service_process import service_process
from vigor_client import PublishResult, VigorClient, WeightSnapshot, digest_of_tensors
from vigor_service.engine.norms.reference import loss_logits
from vigor_service.engine.sequences import TokenSequence

_GROUP = Workload("group", None, 4, 64, 32, 64, "bfloat16")
_COLUMNS = {
    "step": ("step", "{}"),
    "encoding": ("sent", "{}"),
    "mib": ("MiB", "{:.2f}"),
    "of_full": ("of all bytes", "{:.2%}"),
    "changed": ("values that changed", "{:.2%}"),
    "plan_seconds": ("compare, hash, encode, s", "{:.2f}"),
    "send_seconds": ("send, s", "{:.2f}"),
    "verify_seconds": ("verify, s", "{:.2f}"),
    "swap_seconds": ("swap, s", "{:.3f}"),
    "digest": ("digest", "{}"),
}
_SUMMARY = {"what": ("of the deltas", "{}"), "median": ("median", "{:.4f}"), "most": ("most", "{:.4f}")}
_SUMMED_UP = ("mib", "of_full", "changed", "plan_seconds", "send_seconds", "verify_seconds", "swap_seconds")


class Masters:
    """AdamW on float32 copies of a model's parameters; the parameters get the rounded values after each step."""

    def __init__(self, model: PreTrainedModel, learning_rate: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._masters = {name: p.detach().float() for name, p in self._parameters.items()}
        self._optimizer = torch.optim.AdamW(self._masters.values(), lr=learning_rate, weight_decay=0.0)

    def step(self) -> float:
        """Take an optimizer step with the parameters' gradients; return the share of values that changed."""
        for name, parameter in self._parameters.items():
            self._masters[name].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        self._optimizer.step()
        changed = sum(self._round(parameter, self._masters[name]) for name, parameter in self._parameters.items())
        return changed / sum(parameter.numel() for parameter in self._parameters.values())

    def _round(self, parameter: nn.Parameter, master: Tensor) -> int:
        new = master.to(parameter.dtype)
        num_changed = int((parameter != new).sum())
        with torch.no_grad():
            parameter.copy_(new)
        return num_changed


def main(arguments: Sequence[str]) -> Report:
    """Train, publish, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as directory:
        served = ["--dtype", "bfloat16", "--state-dir", str(Path(directory) / "state")]
        if options.model is not None:
            save_random_weights(options.model, Path(directory) / "checkpoint", dtype="bfloat16")
            served += ["--model", str(Path(directory) / "checkpoint")]
        with service_process(Path(directory), *served) as service, VigorClient(str(service.http.base_url)) as client:
            rows = list(_steps(client, options))
    tables = [Table("steps", _COLUMNS, rows), _summary(rows)]
    notes = [
        f"{options.model or 'the embedded model'} in bfloat16, masters in float32; AdamW, learning rate "
        f"{options.learning_rate:g}, on the rewards of one group of {_GROUP.num_completions}: {_GROUP.describe()}",
        "digest: whether the service's equals the trainer's, computed anew from all of its tensors",
    ]
    report = new_report("Deltas", "benchmarks.deltas", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


def _steps(client: VigorClient, options: argparse.Namespace) -> Iterator[dict[str, Cell]]:
    subject = load_subject(options.model, dtype="bfloat16", device="cpu")
    subject.model.requires_grad_(True)
    masters, snapshot = Masters(subject.model, options.learning_rate), WeightSnapshot()
    sequences = _GROUP.sequences(subject.ids)
    tensors, num_bytes = subject.model.state_dict(), client.weights().num_bytes
    for step in range(1, options.steps + 1):
        _backward(subject.model, sequences, _rewards(client, sequences))
        changed = masters.step()
        published = client.publish_weights(tensors, weight_version=step, snapshot=snapshot)
        of_full = published.sent_bytes / num_bytes
        yield _row(step, changed, published, of_full, is_right=_is_right(client, tensors, published))
        print(f"step {step} of {options.steps}", file=sys.stderr)


def _rewards(client: VigorClient, sequences: Sequence[TokenSequence]) -> list[float]:
    completions = [list(sequence.completion_ids) for sequence in sequences]
    (group,) = client.score([{"prompt_ids": list(sequences[0].prompt_ids), "completions": completions}]).groups
    return [completion.reward for completion in group.completions]


def _backward(model: PreTrainedModel, sequences: Sequence[TokenSequence], rewards: Sequence[float]) -> None:
    for sequence, reward in zip(sequences, rewards, strict=True):
        targets = torch.tensor(sequence.completion_ids)
        loss = nn.functional.cross_entropy(loss_logits(model, sequence), targets)
        (loss * reward).backward()


def _is_right(client: VigorClient, tensors: Mapping[str, Tensor], published: PublishResult) -> bool:
    return client.weights().weight_digest == published.weight_digest == digest_of_tensors(tensors, client.tensors())


def _row(step: int, changed: float, published: PublishResult, of_full: float, *, is_right: bool) -> dict[str, Cell]:
    return {
        "step": step,
        "encoding": published.encoding or "nothing",
        "mib": published.sent_bytes / 2**20,
        "of_full": of_full,
        "changed": changed,
        "plan_seconds": published.plan_seconds,
        "send_seconds": published.send_seconds,
        "verify_seconds": published.verify_seconds,
        "swap_seconds": published.swap_seconds,
        "digest": "equal" if is_right else "DIFFERS",
    }


def _summary(rows: Sequence[dict[str, Cell]]) -> Table:
    deltas = [row for row in rows if row["encoding"] == "delta"]
    numbers = {key: [float(row[key] or 0) for row in deltas] for key in _SUMMED_UP}
    summary: list[dict[str, Cell]] = [
        {"what": _COLUMNS[key][0], "median": median(values), "most": max(values)}
        for key, values in numbers.items()
        if values
    ]
    return Table("summary", _SUMMARY, summary)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deltas", description=__doc__)
    parser.add_argument("--model", help="a shape of benchmarks/models.py (default: the embedded model)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
