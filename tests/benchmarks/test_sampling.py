"""Sampled groups: real, repeatable, kept, and never scored by another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.sampling import SampledGroup, StaleGroupsError, load_groups, sample_groups, save_groups
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from vigor_service.engine.loading.loading import EMBEDDED_NAME, Policy
from vigor_service.engine.sequences import TokenSequence

KEPT = Path(__file__).parents[2] / "benchmarks" / "data" / "groups.json"


def tiny_policy() -> Policy:
    model = tiny_model("llama", max_position_embeddings=2048, num_hidden_layers=1)
    return Policy(model, tiny_tokenizer(), "tiny")


def test_the_policy_itself_samples_the_same_groups_from_the_same_seed() -> None:
    policy = tiny_policy()
    groups = sample_groups(policy, num_completions=3, max_new_tokens=2, seed=1)
    assert groups == sample_groups(policy, num_completions=3, max_new_tokens=2, seed=1)
    assert groups != sample_groups(policy, num_completions=3, max_new_tokens=2, seed=2)
    assert len({group.question for group in groups}) == len(groups) == 24
    for group in groups:
        assert len({sequence.prompt_ids for sequence in group.sequences}) == 1
        assert [1 <= len(sequence.completion_ids) <= 2 for sequence in group.sequences] == [True] * 3


def test_a_completion_ends_with_its_first_end_token() -> None:
    policy = tiny_policy()
    groups = sample_groups(policy, num_completions=32, max_new_tokens=4, seed=0)
    ended = [s.completion_ids for group in groups for s in group.sequences if 257 in s.completion_ids]
    assert ended
    assert all(ids.index(257) == len(ids) - 1 for ids in ended)


def test_kept_groups_come_back_as_they_were(tmp_path: Path) -> None:
    groups = [SampledGroup("Why?", (TokenSequence((1, 2), (3,)), TokenSequence((1, 2), (4, 5))))]
    save_groups(tmp_path / "groups.json", groups, model="tiny", how="by hand")
    assert load_groups(tmp_path / "groups.json", model="tiny") == (groups, "by hand")


def test_groups_of_another_model_are_refused(tmp_path: Path) -> None:
    save_groups(tmp_path / "groups.json", [], model="tiny", how="by hand")
    with pytest.raises(StaleGroupsError, match="sampled from tiny, not from other: --sample makes it anew"):
        load_groups(tmp_path / "groups.json", model="other")


def test_the_kept_groups_are_whole() -> None:
    groups, how = load_groups(KEPT, model=EMBEDDED_NAME)
    assert "temperature 1" in how
    assert [len(group.sequences) for group in groups] == [8] * 24
    for group in groups:
        assert len({sequence.prompt_ids for sequence in group.sequences}) == 1
        assert all(1 <= len(sequence.completion_ids) <= 96 for sequence in group.sequences)
        assert len(set(group.sequences)) > 1, "there is something to rank"
