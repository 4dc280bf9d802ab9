"""`vigor-trainer` with completions that depend on their step and place alone, however many processes sample them.

TRL gives each process its own random numbers, so that what two sample is never what one samples. All the rest of a run
can be compared when the completions are the same: prompts, groups, rewards, the update.
"""

from __future__ import annotations

import sys
from random import Random
from typing import Any

from vigor_trainer import train
from vigor_trainer.__main__ import main
from vigor_trainer.trainer import VigorTrainer

NUM_BYTES = 256
END_TOKEN = 257  # of the tiny models


class PlannedTrainer(VigorTrainer):
    """Generates what was planned, and trains on it."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: object, **__: object) -> tuple[Any, None]:
        first = self.accelerator.process_index * len(prompt_ids)  # pyright: ignore[reportAttributeAccessIssue]
        return [planned(self.state.global_step, first + place) for place in range(len(prompt_ids))], None


def planned(step: int, place: int) -> list[int]:
    """A completion of one to eight tokens; every second one ends by itself."""
    draw = Random(f"{step}/{place}")
    ids = [draw.randrange(NUM_BYTES) for _ in range(draw.randint(1, 7))]
    return [*ids, END_TOKEN] if place % 2 else ids


if __name__ == "__main__":
    train.VigorTrainer = PlannedTrainer  # pyright: ignore[reportPrivateImportUsage] - what the run is made of
    sys.exit(main())
