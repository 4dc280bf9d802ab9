"""Records as a run writes them."""

from __future__ import annotations

from typing import Any

from vigor_trainer.monitoring.completions import CompletionRecord
from vigor_trainer.monitoring.records import RoundRecord


def example_record(step: int, **changes: object) -> RoundRecord:
    given: dict[str, Any] = {
        "step": step,
        "mode": "train",
        "weight_version": step,
        "weight_digest": f"xxh3-128:{step:032x}",
        "num_groups": 2,
        "num_completions": 8,
        "num_unscored": 0,
        "mean_scaled_grad_norm": 40.25 - step,
        "mean_length": 31.5,
        "reward_length_correlation": -0.125,
        "accuracy": 0.25,
        "mean_logprob": -0.5,
        "mean_entropy": 0.75,
        "self_certainty": 12.0,
        "sent_bytes": 538_000_000,
        "generate_seconds": 6.0,
        "publish_seconds": 3.0,
        "wait_seconds": 0.5,
        "score_seconds": 4.0,
    }
    given.update(changes)
    return RoundRecord(**given)


def example_completion(step: int, **changes: object) -> CompletionRecord:
    given: dict[str, Any] = {
        "step": step,
        "mode": "train",
        "group": 0,
        "index": 0,
        "prompt": "What is 3 + 4?",
        "completion": "3 + 4 = 7",
        "completion_ids": [5, 6, 7],
        "finish_reason": "stop",
        "num_tokens": 3,
        "status": "ok",
        "grad_norm": 10.0,
        "scaled_grad_norm": 17.25,
        "rank": 1.0,
        "rewards": {"vigor": 1.0},
        "mean_logprob": -0.5,
        "mean_entropy": 0.75,
        "self_certainty": 12.0,
        "p_norm": 0.625,
        "sum_logprob": -1.5,
        "final_answer": "7",
        "is_correct": True,
        "weight_version": step,
    }
    given.update(changes)
    return CompletionRecord(**given)
