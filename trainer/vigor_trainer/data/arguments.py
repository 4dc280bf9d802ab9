"""The flags that say how the rows of a task are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from vigor_trainer.data.tasks import TaskSource
from vigor_trainer.flags import refuse_less


@dataclass(kw_only=True)
class TaskArguments:
    """How the rows of a task are read.

    Raises:
        ValueError: a number is out of its range; names the flag.
    """

    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the hub dataset"})
    dataset_size: int = field(
        default=1000, metadata={"help": "Number of questions to generate for a reasoning-gym task"}
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the prompt; default: prompt or question"}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column with the answer; default: answer, if there is one"}
    )
    tests_column: str | None = field(
        default=None, metadata={"help": "Column with the tests of a code task; default: tests, if there is one"}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message before every prompt; needs a chat template"}
    )

    def __post_init__(self) -> None:
        refuse_less(self, 1, "dataset_size")

    def source(self, name: str, *, split: str, seed: int) -> TaskSource:
        """Return the task of this name, read as the flags say."""
        return TaskSource(
            name=name,
            split=split,
            config=self.dataset_config,
            prompt_column=self.prompt_column,
            answer_column=self.answer_column,
            tests_column=self.tests_column,
            size=self.dataset_size,
            seed=seed,
            system_prompt=self.system_prompt,
        )
