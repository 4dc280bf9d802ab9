"""A model with an adapter in a run: what is refused, and that each round is scored by what generated it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from accelerate import Accelerator, DistributedType

from tests.client.fake_service import FakeService
from tests.client.publishing.test_adapted_model import adapted, assert_serves, client_of, copied
from tests.support.tiny_models import tiny_model
from tests.trainer import fake_service as scoring
from vigor_client.publishing.adapted_model import beside_base, merged_into_base
from vigor_client.schemas.scoring import ScoreRequest
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.weights.adapters import whole_adapted_model
from vigor_trainer.weights.publisher import Publisher

if TYPE_CHECKING:
    from peft import PeftModel


def test_a_model_without_an_adapter_may_be_in_shards() -> None:
    sharded = cast("Accelerator", SimpleNamespace(distributed_type=DistributedType.FSDP))
    assert whole_adapted_model(sharded, tiny_model()) is None


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_an_adapter_in_shards_is_refused_by_name(kind: DistributedType) -> None:
    with pytest.raises(UnsupportedSettingError, match=f"--use_peft with {kind.value}"):
        whole_adapted_model(cast("Accelerator", SimpleNamespace(distributed_type=kind)), adapted())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # TRL 1.16's
@pytest.mark.parametrize("form", ["adapter", "base"])
def test_every_round_of_the_trainer_is_scored_by_the_adapter_that_generated_it(tmp_path: Path, form: str) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=3, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    served = tiny_model().state_dict() if form == "base" else copied(adapted().state_dict())
    fake, scores = FakeService(served), scoring.FakeService()

    def score(request: ScoreRequest) -> None:
        assert request.weight_version is not None
        assert request.weight_digest == fake.tensor_list().weight_digest
        scores.weight_version, scores.weight_digest = request.weight_version, request.weight_digest

    scores.on_score = score
    with client_of(fake) as client, Publisher(client) as publisher:
        trainer = scoring.tiny_trainer(scores, publisher, tmp_path, peft_config=config)
        trainer.train()
        final = trainer.publish_final_weights()
    assert len({request.weight_digest for request in scores.requests}) == 3
    assert (final.weight_version, final.encoding) == (3, "partial")
    model = cast("PeftModel", trainer.model)
    assert_serves(fake, beside_base(model).all if form == "adapter" else merged_into_base(model).all)
