"""The reward function that TRL calls: complete groups of sampled token ids, scored by exactly this round's weights.

The ids are the sampled ones, end-of-sequence token included, after the prompt ids that generation used; text is never
tokenized again. Every process hands in its slice, one of them asks the service, each gets its slice back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Protocol

from accelerate import PartialState
from accelerate.utils import gather_object

from vigor_client import CompletionScore, Group, GroupScore, PublishResult, ScoreResponse, score_in_chunks
from vigor_client.schemas.scoring import FinishReason, RewardName, TieRule, TruncatedRule
from vigor_trainer.monitoring import statistics
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.processes import on_main_process
from vigor_trainer.rewards.groups import SampledCompletion, ScoreOptions, complete_groups, question, validate_response
from vigor_trainer.weights.publisher import Publisher

if TYPE_CHECKING:
    from transformers import TrainerState


Text = str | list[dict[str, Any]]
LOGGED = (
    "weight_version",
    "mean_scaled_grad_norm",
    "mean_length",
    "reward_length_correlation",
    "accuracy",
    "mean_logprob",
    "mean_entropy",
    "self_certainty",
    "num_unscored",
    "sent_bytes",
    "generate_seconds",
    "publish_seconds",
    "wait_seconds",
    "score_seconds",
)


class ScoringClient(Protocol):
    """What is needed of `VigorClient`."""

    def score(
        self,
        groups: Sequence[Group],
        *,
        weight_version: int,
        weight_digest: str,
        wait_seconds: float,
        reward: RewardName,
        ties: TieRule,
        truncated: TruncatedRule,
    ) -> ScoreResponse: ...


class ServiceReward:
    """Callable as a TRL reward function. One call per generation round."""

    def __init__(
        self,
        client: ScoringClient,
        publisher: Publisher,
        options: ScoreOptions,
        *,
        record: Callable[[RoundRecord], None],
    ) -> None:
        self.__name__ = options.reward  # TRL logs rewards/<name>/mean
        self._client = client
        self._publisher = publisher
        self._options = options
        self._record = record

    def __call__(
        self,
        *,
        completions: Sequence[Text],
        completion_ids: Sequence[list[int]],
        prompt_ids: Sequence[list[int]],
        loss_mask: Sequence[list[int] | None],
        finish_reason: Sequence[FinishReason],
        group_size: Sequence[int],
        mode: Sequence[Literal["train", "eval"]],
        generate_seconds: Sequence[float],
        trainer_state: TrainerState,
        log_metric: Callable[[str, float], None],
        answer: Sequence[str | None] | None = None,
        **_other_columns: object,
    ) -> list[float]:
        """Return one reward per completion of this process, from ranks within complete groups.

        Raises:
            WrongAnswerError: the service's answer does not fit.
            ScoringFailedError: in the other processes, when the one that scores failed.
            whatever stopped the publication or the request: the client's errors.
        """
        answers = answer or [None] * len(completions)
        correct = [_is_correct(text, expected) for text, expected in zip(completions, answers, strict=True)]
        samples = list(map(SampledCompletion, prompt_ids, completion_ids, loss_mask, finish_reason, correct))
        everyone: list[SampledCompletion] = gather_object(samples)
        groups = complete_groups(everyone, group_size[0])

        def score() -> list[float]:
            scored, record = self._score(groups, trainer_state.global_step, mode[0], generate_seconds[0])
            self._record(record)
            _log(record, log_metric)
            return [score.reward for group in scored for score in group.completions]

        start = PartialState().process_index * len(samples)
        return on_main_process(score)[start : start + len(samples)]

    def _score(
        self,
        groups: Sequence[Sequence[SampledCompletion]],
        step: int,
        mode: Literal["train", "eval"],
        generate_seconds: float,
    ) -> tuple[list[GroupScore], RoundRecord]:
        started = perf_counter()
        publication = self._publisher.wait()
        published = perf_counter()
        scored = score_in_chunks(question(groups, step=step), lambda chunk: self._ask(chunk, publication))
        seconds = {
            "generate_seconds": generate_seconds,
            "publish_seconds": publication.seconds,
            "wait_seconds": published - started,
            "score_seconds": perf_counter() - published,
        }
        return scored, _round_record(groups, scored, publication, step=step, mode=mode, seconds=seconds)

    def _ask(self, groups: Sequence[Group], publication: PublishResult) -> list[GroupScore]:
        """Ask for scores under exactly the published weights."""
        response = self._client.score(
            groups,
            weight_version=publication.weight_version,
            weight_digest=publication.weight_digest,
            wait_seconds=self._options.wait_seconds,
            reward=self._options.reward,
            ties=self._options.ties,
            truncated=self._options.truncated,
        )
        validate_response(groups, response.groups)
        return response.groups


def _is_correct(completion: Text, answer: str | None) -> bool | None:
    if answer is None:
        return None
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return statistics.is_correct(text, answer)


def _round_record(
    groups: Sequence[Sequence[SampledCompletion]],
    scored: Sequence[GroupScore],
    publication: PublishResult,
    *,
    step: int,
    mode: Literal["train", "eval"],
    seconds: Mapping[str, float],
) -> RoundRecord:
    samples = [sample for group in groups for sample in group]
    scores: list[CompletionScore] = [score for group in scored for score in group.completions]
    pairs = [
        ([score.reward for score in answer.completions], [len(sample.completion_ids) for sample in group])
        for group, answer in zip(groups, scored, strict=True)
    ]
    return RoundRecord(
        step=step,
        mode=mode,
        weight_version=publication.weight_version,
        weight_digest=publication.weight_digest,
        num_groups=len(groups),
        num_completions=len(samples),
        num_unscored=sum(score.status != "ok" for score in scores),
        mean_scaled_grad_norm=statistics.mean(score.scaled_grad_norm for score in scores),
        mean_length=sum(len(sample.completion_ids) for sample in samples) / len(samples),
        reward_length_correlation=statistics.correlation_within_groups(pairs),
        accuracy=statistics.mean(sample.is_correct for sample in samples),
        mean_logprob=statistics.mean(score.mean_logprob for score in scores),
        mean_entropy=statistics.mean(score.mean_entropy for score in scores),
        self_certainty=statistics.mean(score.self_certainty for score in scores),
        sent_bytes=publication.sent_bytes,
        **seconds,
    )


def _log(record: RoundRecord, log_metric: Callable[[str, float], None]) -> None:
    for name in LOGGED:
        value = getattr(record, name)
        if value is not None:
            log_metric(f"vigor/{name}", float(value))
