"""What Accelerate gathers of a model that it has spread over processes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator, DistributedType

from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.weights.gathering import gathered_weights

MODEL = torch.nn.Linear(2, 1)


class Gathering:
    """An accelerator that gathers what it is told, or fails so."""

    def __init__(self, kind: DistributedType, outcome: dict[str, torch.Tensor] | ValueError | None) -> None:
        self.distributed_type = kind
        self._outcome = outcome

    def get_state_dict(self, _model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
        if isinstance(self._outcome, ValueError):
            raise self._outcome
        return self._outcome


def gather(kind: DistributedType, outcome: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - as `Gathering`
    return gathered_weights(cast("Accelerator", Gathering(kind, outcome)), MODEL)


def test_names_are_those_of_the_model_itself() -> None:
    weight = torch.ones(1)
    assert gather(DistributedType.NO, {"_orig_mod.weight": weight}) == {"weight": weight}


def test_zero_3_gives_nothing_to_other_processes_than_the_main_one() -> None:
    assert gather(DistributedType.DEEPSPEED, None) == {}


def test_zero_3_that_may_not_gather_is_refused_with_what_to_set() -> None:
    fault = ValueError("set `zero3_save_16bit_model` to True when using `accelerate config`")
    with pytest.raises(UnsupportedSettingError, match="set `zero3_save_16bit_model` to True"):
        gather(DistributedType.DEEPSPEED, fault)
    with pytest.raises(ValueError, match="zero3_save_16bit_model"):
        gather(DistributedType.FSDP, fault)
