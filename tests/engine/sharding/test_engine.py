"""A model over two ranks gives the scores of the whole model, and survives what happens to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.engine.cases import difficult_sequences
from tests.support.ranks import RankFailedError, RankProcesses, rank_processes
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.interface import BatchResult
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.sequences import (
    NORM_AND_SIGNALS,
    ScoreParts,
    SequenceScore,
    TokenSequence,
    UnsupportedByEngineError,
)
from vigor_service.engine.sharding.engine import ShardedEngine, share_out
from vigor_service.engine.sharding.ranks import Ranks
from vigor_service.engine.sharding.units import UnshardableModelError, shard

TOLERANCE = 1e-5
FAMILIES = ["llama", "qwen2-tied", "qwen3_moe", "gpt2", "gemma2", "lora"]
SIGNALS = ScoreParts(norm=False)
LONELY_SECONDS = 20.0
NUM_LAYERS = 6
RAN_OUT_TOKENS = 30  # of a pass in which rank 1 has no memory


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    with rank_processes(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


def whole_model(family: str) -> PreTrainedModel:
    """Return a tiny model, or one with adapters that are not zero."""
    if family != "lora":
        return tiny_model(family)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(tiny_model("qwen2"), config).eval()  # pyright: ignore[reportReturnType] - PEFT's wrapper serves as a model


def sharded_engine(ranks: Ranks, family: str, parameters: str | None = None) -> ShardedEngine:
    model = whole_model(family)
    names = list(measured_parameters(model, parameters))
    shard(model, ranks)
    return ShardedEngine(model, ranks, names, name="tiny", architecture="Tiny")


def score_all(
    ranks: Ranks, family: str, parameters: str | None, batches: Sequence[tuple[Sequence[TokenSequence], ScoreParts]]
) -> list[BatchResult]:
    engine = sharded_engine(ranks, family, parameters)
    return [engine.score(*batch) for batch in batches]


def assert_equal(found: Sequence[SequenceScore], wanted: Sequence[SequenceScore]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for field in ("grad_norm", "mean_logprob", "mean_entropy", "self_certainty", "mean_probability"):
            value = getattr(other, field)
            assert getattr(one, field) == pytest.approx(value, rel=TOLERANCE, abs=1e-9, nan_ok=True), field
        assert one.num_loss_tokens == other.num_loss_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_give_the_scores_of_one_device(two: RankProcesses, family: str) -> None:
    sequences = difficult_sequences()
    batches = [
        (sequences, NORM_AND_SIGNALS),
        (sequences, SIGNALS),
        (sequences[:1], NORM_AND_SIGNALS),  # one rank has nothing to do
        (sequences[4:6], NORM_AND_SIGNALS),  # none has
        (sequences[::-1], NORM_AND_SIGNALS),
    ]
    engine = Engine(whole_model(family), name="tiny", method="reference")
    for results in two.run(score_all, family, None, batches):
        for result, (given, parts) in zip(results, batches, strict=True):
            assert_equal(result.scores, engine.score(given, parts).scores)


def test_parts_of_the_parameters_are_measured_alone(two: RankProcesses) -> None:
    sequences = difficult_sequences()
    for parameters in ("norms", r"layers\.1\.mlp"):
        engine = Engine(whole_model("llama"), name="tiny", method="reference", parameters=parameters)
        for [result] in two.run(score_all, "llama", parameters, [(sequences, NORM_AND_SIGNALS)]):
            assert_equal(result.scores, engine.score(sequences).scores)


def describe(ranks: Ranks) -> tuple[Any, int, int]:
    engine = sharded_engine(ranks, "qwen2-tied")
    return engine.info, engine.num_local_bytes, engine.measure_batch_tokens()


def test_a_rank_holds_its_part_at_rest_and_all_say_the_same_of_the_engine(two: RankProcesses) -> None:
    whole = Engine(whole_model("qwen2-tied"), name="tiny")
    (info, first_bytes, budget), (other_info, second_bytes, other_budget) = two.run(describe)
    assert info == other_info
    assert budget == other_budget > 0
    assert (info.num_parameters, info.tied_embeddings, info.layout) == (whole.info.num_parameters, True, "packed")
    assert info.rules == whole.info.rules
    num_bytes = 4 * whole.info.num_parameters
    assert first_bytes + second_bytes == num_bytes
    assert first_bytes == pytest.approx(num_bytes / 2, rel=0.01)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return cast("nn.ModuleList", model.get_decoder().layers)


def bytes_gathered(ranks: Ranks) -> tuple[int, int, int, int]:
    """Return the bytes gathered at most and at rest, and those of a layer and of what is in none."""
    model = tiny_model("llama", num_hidden_layers=NUM_LAYERS)
    layers = list(layers_of(model))
    layer_bytes = sum(parameter.nbytes for parameter in layers[0].parameters())
    other_bytes = sum(parameter.nbytes for parameter in model.parameters()) - NUM_LAYERS * layer_bytes
    names = list(measured_parameters(model))
    shard(model, ranks)
    engine = ShardedEngine(model, ranks, names, name="tiny", architecture="Tiny")
    noted: list[int] = []

    def gathered() -> int:
        return sum(each.untyped_storage().size() for each in engine._shards.measured.values())  # pyright: ignore[reportPrivateUsage]

    def note(*_: object) -> None:
        noted.append(gathered())

    def note_in_backward(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        inputs[0].register_hook(note)

    for layer in layers:
        layer.register_forward_pre_hook(note_in_backward)
        layer.register_forward_hook(note)
    engine.score(difficult_sequences())
    assert len(noted) >= 2 * NUM_LAYERS
    return max(noted), gathered(), layer_bytes, other_bytes


def test_no_more_is_gathered_than_two_layers_and_what_is_in_none(two: RankProcesses) -> None:
    for most, at_rest, layer_bytes, other_bytes in two.run(bytes_gathered):
        assert at_rest == 0
        assert most <= 1.1 * (other_bytes + 2 * layer_bytes)  # parts are padded


def score_where_a_rank_runs_out(ranks: Ranks, when: str, sequences: Sequence[TokenSequence]) -> list[BatchResult]:
    engine = sharded_engine(ranks, "llama")
    model = engine._model  # pyright: ignore[reportPrivateUsage] - the layer in which memory runs out

    def run_out(*_: object) -> None:
        raise MemoryError("there is no memory")

    def before_layer(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if ranks.rank == 1 and inputs[0].shape[1] > RAN_OUT_TOKENS:
            if when == "forward":
                run_out()
            inputs[0].register_hook(run_out)

    hook = layers_of(model)[1].register_forward_pre_hook(before_layer)
    results = [engine.score(sequences)]
    hook.remove()
    return [*results, engine.score(sequences)]


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_rank_without_memory_halves_the_batch_on_all_ranks(two: RankProcesses, when: str) -> None:
    sequences = difficult_sequences()
    wanted = Engine(whole_model("llama"), name="tiny", method="reference").score(sequences).scores
    for result, after in two.run(score_where_a_rank_runs_out, when, sequences):
        assert_equal(result.scores, wanted)
        assert result.fitting_tokens is not None
        assert result.too_long == {}
        assert after.fitting_tokens is None


def score_where_a_rank_fails(ranks: Ranks, sequences: Sequence[TokenSequence]) -> tuple[str, BatchResult]:
    engine = sharded_engine(ranks, "llama")

    def fail(*_: object) -> None:
        if ranks.rank == 1:
            raise KeyError("its own")

    hook = layers_of(engine._model)[0].register_forward_pre_hook(fail)  # pyright: ignore[reportPrivateUsage]
    try:
        engine.score(sequences)
    except RuntimeError as error:
        hook.remove()
        return str(error), engine.score(sequences)
    raise AssertionError("nothing was raised")


def test_what_one_rank_raises_all_raise_and_score_on(two: RankProcesses) -> None:
    sequences = difficult_sequences()
    wanted = Engine(whole_model("llama"), name="tiny", method="reference").score(sequences).scores
    for message, result in two.run(score_where_a_rank_fails, sequences):
        assert message == "rank 1: KeyError: 'its own'"
        assert_equal(result.scores, wanted)


def attribute(ranks: Ranks) -> None:
    with pytest.raises(UnsupportedByEngineError, match="attribution is not available"):
        sharded_engine(ranks, "llama").attribute(difficult_sequences()[0])


def test_an_attribution_is_refused(two: RankProcesses) -> None:
    two.run(attribute)


def refuse(ranks: Ranks, family: str, why: str) -> None:
    with pytest.raises(UnshardableModelError, match=why):
        sharded_engine(ranks, family)


def test_what_no_rule_measures_is_refused_by_name(two: RankProcesses) -> None:
    two.run(refuse, "mamba", r"no rule measures .*--shard")


def test_sequences_are_shared_out_by_their_tokens() -> None:
    sequences = [TokenSequence((1,), tuple(range(length))) for length in (50, 20, 19, 10, 1)]
    sizes = [[each.num_tokens for each in share] for share in share_out(sequences, 2)]
    assert sorted(map(sum, sizes)) == [52, 53]
    assert share_out([], 3) == [[], [], []]
    assert share_out(sequences[:1], 2) == [[sequences[0]], []]


def leave_alone(ranks: Ranks, sequences: Sequence[TokenSequence]) -> None:
    engine = sharded_engine(ranks, "llama")
    if ranks.rank == 0:
        engine.score(sequences)


def test_a_rank_that_waits_in_vain_ends_its_wait(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("lonely")
    with (
        rank_processes(directory, timeout_seconds=LONELY_SECONDS) as ranks,
        pytest.raises(RankFailedError, match=r"(?i)timed out|timeout"),
    ):
        ranks.run(leave_alone, difficult_sequences())
