"""The flags of `vigor-trainer audit`."""

from __future__ import annotations

from dataclasses import dataclass, field

from vigor_trainer.connection import ConnectionArguments
from vigor_trainer.evaluation.arguments import SamplingArguments
from vigor_trainer.flags import refuse_less


@dataclass(kw_only=True)
class AuditArguments(ConnectionArguments, SamplingArguments):
    """Each field is a flag.

    Raises:
        ValueError: a number is out of its range, or flags do not go together; names them.
    """

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Questions with answers: addition, reasoning-gym:<task>, a .jsonl file, or the name of a dataset "
            "on the hub"
        },
    )
    completions: str | None = field(
        default=None,
        metadata={"help": "File (.jsonl) with existing completions to audit, instead of sampling new ones"},
    )
    num_generations: int = field(default=8, metadata={"help": "Number of sampled completions per question"})
    publish: bool = field(
        default=False,
        metadata={"help": "Whether to send the model's weights to the service if it serves other weights"},
    )
    output: str = field(
        default="runs/audit", metadata={"help": "Directory for audit.json, completions.jsonl and audit.html"}
    )

    def __post_init__(self) -> None:
        ConnectionArguments.__post_init__(self)
        SamplingArguments.__post_init__(self)
        refuse_less(self, 2, "num_generations")
        if (self.dataset is None) == (self.completions is None):
            raise ValueError("give one of --dataset and --completions")
