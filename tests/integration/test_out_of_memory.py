"""The real service, whose process may take no more memory, answers all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.memory.short_of_memory import (
    HEADROOM_BYTES,
    SIZES,
    forbid_growth,
    long_sequence,
    prompt_heavy_sequences,
)
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint

PROGRAM = """
from pydantic_settings import CliApp
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import load_policy
from vigor_service.observability.logs import configure_logging
from vigor_service.runtime import LoadedModel
from vigor_service.server import serve
from vigor_service.settings import Settings

def load():
    policy = load_policy(settings.model)
    return LoadedModel(Engine(policy.model, name=policy.name, method="rules"), policy.tokenizer)

configure_logging("info", "text")
settings = CliApp.run(Settings)
serve(settings, load)
"""
"""A service that scores by the rules of the fast path: the reference takes one sequence after the other."""


@pytest.mark.slow
def test_a_service_that_runs_out_of_memory_answers_and_takes_smaller_batches(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", max_position_embeddings=2**16, **SIZES)
    sequences = prompt_heavy_sequences()
    groups = [
        {"prompt_ids": first.prompt_ids, "completions": [first.completion_ids, second.completion_ids]}
        for first, second in zip(sequences[::2], sequences[1::2], strict=True)
    ]
    long = {"prompt_ids": long_sequence().prompt_ids, "completions": [long_sequence().completion_ids]}
    options = ["--max-batch-tokens", "100000", "--score-cache-entries", "0"]
    with service_process(tmp_path, "--model", str(checkpoint), *options, python=["-c", PROGRAM]) as service:
        # What the heap has kept of an eighth, with the headroom, does not do for all at once.
        eighths = [groups[start : start + 4] for start in range(0, len(groups), 4)]
        before = [service.http.post("/v1/score", json={"groups": eighth}).json() for eighth in eighths]
        forbid_growth(service.process.pid, HEADROOM_BYTES)
        after = service.http.post("/v1/score", json={"groups": groups})
        assert after.status_code == 200, after.text
        expected = [norm for answer in before for norm in _norms(answer)]
        assert _norms(after.json()) == pytest.approx(expected, rel=1e-3)  # other batches, other rounding
        assert service.http.get("/v1/model").json()["max_batch_tokens"] == 50_000
        assert service.log.read_text().count("WARNING vigor_service.scheduling.fair_queue out_of_memory") == 1
        refused = service.http.post("/v1/score", json={"groups": [groups[0], long]})
        assert (refused.status_code, refused.json()["code"]) == (413, "sequence_too_long")
        assert refused.json()["group"] == 1
        assert 0 < refused.json()["limit"] < refused.json()["length"] == long_sequence().num_tokens


def _norms(answer: dict[str, list[dict[str, list[dict[str, float]]]]]) -> list[float]:
    return [score["grad_norm"] for group in answer["groups"] for score in group["completions"]]
