"""The metrics of a round have one name each, and only what has a value is logged."""

from __future__ import annotations

from dataclasses import fields

import pytest

from tests.trainer.fake_service import score_group
from vigor_client import Completion, Group
from vigor_client.integrations.trl.metrics import METRICS, SCORE_METRICS, log_metrics, mean, score_metrics
from vigor_trainer.monitoring.records import RoundRecord


def test_the_mean_leaves_out_what_is_missing() -> None:
    assert mean([1.0, None, 3.0]) == 2.0
    assert mean([None]) is None


def test_the_scores_of_a_round_give_every_metric_of_scores() -> None:
    ids = [[5], [8, 1]]
    group = Group(prompt_ids=[1], completions=[Completion(ids=each) for each in ids])
    values = score_metrics(score_group(group).completions, ids, weight_version=7)
    assert values.keys() == SCORE_METRICS.keys()
    assert (values["weight_version"], values["mean_scaled_grad_norm"], values["mean_length"]) == (7, 7.0, 1.5)


def test_every_metric_is_recorded_too() -> None:
    assert METRICS.keys() <= {field.name for field in fields(RoundRecord)}


def test_what_has_no_value_is_not_logged() -> None:
    logged: dict[str, float] = {}
    log_metrics({"accuracy": None, "num_unscored": 2}, logged.__setitem__)
    assert logged == {"vigor/num_unscored": 2.0}


def test_a_name_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(KeyError, match="speed"):
        log_metrics({"speed": 1.0}, lambda _name, _value: None)
