"""The flags of `vigor-trainer audit`."""

from __future__ import annotations

from dataclasses import dataclass, field

from vigor_trainer.evaluation.arguments import SamplingArguments, refuse_less


@dataclass(kw_only=True)
class AuditArguments(SamplingArguments):
    """Each field is a flag.

    Raises:
        ValueError: a number is out of its range, or flags do not go together; names them.
    """

    reward_url: str = field(metadata={"help": "URL of vigor-service, for example http://127.0.0.1:8000"})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Questions with answers: addition, reasoning-gym:<task>, a .jsonl file, or the name of a dataset "
            "on the hub"
        },
    )
    completions: str | None = field(
        default=None,
        metadata={"help": "A .jsonl file of completions that are there already; none are sampled then"},
    )
    num_generations: int = field(default=8, metadata={"help": "Number of sampled completions of a question"})
    publish: bool = field(
        default=False,
        metadata={"help": "Whether to send the model's weights to the service where it holds others"},
    )
    output: str = field(
        default="runs/audit", metadata={"help": "Directory of audit.json, completions.jsonl and audit.html"}
    )
    api_key_file: str | None = field(
        default=None,
        metadata={"help": "File with the service's key, on one line; without it, the key in VIGOR_API_KEY"},
    )
    score_timeout_seconds: float = field(
        default=600.0, metadata={"help": "Seconds the service may be silent while it scores one request"}
    )
    ready_timeout_seconds: float = field(
        default=300.0, metadata={"help": "Seconds to wait at the start until the service is ready"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_less(self, 2, "num_generations")
        if (self.dataset is None) == (self.completions is None):
            raise ValueError("give one of --dataset and --completions")
        for name in ("score_timeout_seconds", "ready_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} is {getattr(self, name):g}: give more than 0")
