"""The reward function that `VigorTrainer` calls: whole groups of sampled ids, scored by exactly this round's weights.

The ids are the sampled ones, end-of-sequence token included, after the prompt ids that generation used; text is never
tokenized again. Every process hands in its slice, the main process asks the service, each gets its slice back.
Stock TRL gives its reward functions neither those prompt ids nor the mask of tokens that tools wrote, so `VigorReward`,
which is for stock TRL, tokenizes prompts itself and refuses tools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vigor_client import CompletionScore, Group, GroupScore, PublishResult, ScoreResponse, score_in_chunks
from vigor_client.integrations.trl.distributed import gather_from_all, on_main_process, process_rank
from vigor_client.integrations.trl.metrics import METRICS, log_metrics, mean, score_metrics
from vigor_client.integrations.trl.round import Round
from vigor_client.schemas.scoring import ComputeName, FinishReason, RewardName, TieRule, TruncatedRule, compute_for
from vigor_trainer.monitoring import statistics
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.rewards.groups import SampledCompletion, ScoreOptions, whole_round

if TYPE_CHECKING:
    from transformers import TrainerState


Text = str | list[dict[str, Any]]
Mode = Literal["train", "eval"]


class Publications(Protocol):
    """What is needed of a `Publisher`."""

    def at(self, step: int) -> PublishResult: ...


class ScoringClient(Protocol):
    """What is needed of `VigorClient`."""

    def score(
        self,
        groups: Sequence[Group],
        *,
        weight_version: int,
        weight_digest: str,
        wait_seconds: float,
        compute: Sequence[ComputeName],
        reward: RewardName,
        ties: TieRule,
        truncated: TruncatedRule,
    ) -> ScoreResponse: ...


class ServiceReward:
    """Callable as a TRL reward function. One call per generation round."""

    def __init__(
        self,
        client: ScoringClient,
        publications: Publications,
        options: ScoreOptions,
        *,
        record: Callable[[RoundRecord], None],
    ) -> None:
        self.__name__ = options.reward  # TRL logs rewards/<name>/mean
        self._client = client
        self._publications = publications
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
        mode: Sequence[Mode],
        generate_seconds: Sequence[float],
        trainer_state: TrainerState,
        log_metric: Callable[[str, float], None],
        answer: Sequence[str | None] | None = None,
        **_other_columns: object,
    ) -> list[float]:
        """Return one reward per completion of this process, from ranks within whole groups.

        Raises:
            InvalidGroupError: the completions of all processes are not whole groups of one prompt each.
            WrongAnswerError: the service's scores are not about the tokens that were sampled.
            MainProcessError: in the other processes, when the one that scores failed.
            whatever stopped the publication or the request: the client's errors.
        """
        answers = answer or [None] * len(completions)
        correct = [_is_correct(text, expected) for text, expected in zip(completions, answers, strict=True)]
        mine = list(map(SampledCompletion, prompt_ids, completion_ids, loss_mask, finish_reason, correct))
        samples = gather_from_all(mine)
        asked = whole_round(samples, group_size[0], step=trainer_state.global_step)

        def score() -> list[float]:
            scored, record = self._score(asked, samples, trainer_state.global_step, mode[0], generate_seconds[0])
            self._record(record)
            log_metrics({name: value for name, value in asdict(record).items() if name in METRICS}, log_metric)
            return [score.reward for score in _scores(scored)]

        start = process_rank() * len(mine)
        return on_main_process(score)[start : start + len(mine)]

    def _score(
        self, asked: Round, samples: Sequence[SampledCompletion], step: int, mode: Mode, generate_seconds: float
    ) -> tuple[list[GroupScore], RoundRecord]:
        started = perf_counter()
        publication = self._publications.at(step)
        published = perf_counter()
        groups = asked.groups()
        scored = score_in_chunks(groups, lambda chunk: self._ask(chunk, publication))
        asked.check_tokens(list(_scores(scored)))
        seconds = {
            "generate_seconds": generate_seconds,
            "publish_seconds": publication.seconds,
            "wait_seconds": published - started,
            "score_seconds": perf_counter() - published,
        }
        return scored, _round_record(groups, samples, scored, publication, step=step, mode=mode, seconds=seconds)

    def _ask(self, groups: Sequence[Group], publication: PublishResult) -> list[GroupScore]:
        """Ask for scores under exactly the published weights."""
        return self._client.score(
            groups,
            weight_version=publication.weight_version,
            weight_digest=publication.weight_digest,
            wait_seconds=self._options.wait_seconds,
            compute=compute_for(self._options.reward),
            reward=self._options.reward,
            ties=self._options.ties,
            truncated=self._options.truncated,
        ).groups


def _scores(groups: Sequence[GroupScore]) -> Iterator[CompletionScore]:
    return (score for group in groups for score in group.completions)


def _is_correct(completion: Text, answer: str | None) -> bool | None:
    if answer is None:
        return None
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return statistics.is_correct(text, answer)


def _round_record(
    groups: Sequence[Group],
    samples: Sequence[SampledCompletion],
    scored: Sequence[GroupScore],
    publication: PublishResult,
    *,
    step: int,
    mode: Mode,
    seconds: Mapping[str, float],
) -> RoundRecord:
    pairs = [
        ([score.reward for score in answer.completions], [len(each.ids or []) for each in group.completions])
        for group, answer in zip(groups, scored, strict=True)
    ]
    ids = [sample.completion_ids for sample in samples]
    measured: dict[str, Any] = {
        **score_metrics(list(_scores(scored)), ids, weight_version=publication.weight_version),
        **seconds,
    }
    return RoundRecord(
        step=step,
        mode=mode,
        weight_digest=publication.weight_digest,
        num_groups=len(groups),
        num_completions=len(samples),
        reward_length_correlation=statistics.correlation_within_groups(pairs),
        accuracy=mean(sample.is_correct for sample in samples),
        sent_bytes=publication.sent_bytes,
        **measured,
    )
