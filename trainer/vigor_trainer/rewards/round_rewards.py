"""The reward functions that `VigorTrainer` calls, which score whole groups by exactly this round's weights.

The scored ids are the sampled ones, end-of-sequence token included, after the prompt ids that generation used; text is
never tokenized again. Every process sends its slice to the main process, which makes one request to the service for all
rewards; each process gets the rewards of its slice back. Stock TRL gives its reward functions neither those prompt ids
nor the mask of tokens that tools wrote. So `VigorReward`, which is for stock TRL, tokenizes prompts itself and refuses
tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vigor_client import CompletionScore, Group, GroupScore, PublishResult, ScoreResponse, Timing, score_in_chunks
from vigor_client.integrations.trl.distributed import gather_from_all, on_main_process, process_rank
from vigor_client.integrations.trl.metrics import METRICS, NORM_COLUMN, RANK_COLUMN, log_metrics, mean, score_metrics
from vigor_client.integrations.trl.round import Round
from vigor_client.schemas.scoring import ComputeName, FinishReason, RewardName, TieRule, TruncatedRule
from vigor_trainer.config.arguments import BuiltinName
from vigor_trainer.data.programs import judge_all
from vigor_trainer.data.prompts import Prompt
from vigor_trainer.monitoring import statistics
from vigor_trainer.monitoring.completions import SCORE_FIELDS, CompletionRecord
from vigor_trainer.monitoring.health import RoundHealth, round_health
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.rewards.custom import CustomReward
from vigor_trainer.rewards.groups import SampledCompletion, ScoreOptions, whole_round
from vigor_trainer.rewards.rules import ScoredGroup, asked_reward, needed_parts, rewards_of

if TYPE_CHECKING:
    from transformers import TrainerState


Text = str | list[dict[str, Any]]
Mode = Literal["train", "eval"]
Rewards = Mapping[BuiltinName, list[float]]


class Publications(Protocol):
    """The methods of a `Publisher` that are used here."""

    def at(self, step: int) -> PublishResult: ...


class ScoringClient(Protocol):
    """The methods of `VigorClient` that are used here."""

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


class RoundRewards:
    """Computes all rewards of a generation round together: one request to the service, one record.

    ``names`` are the rewards in the order of TRL's ``reward_weights``.
    """

    def __init__(
        self,
        client: ScoringClient,
        publications: Publications,
        options: ScoreOptions,
        names: Sequence[BuiltinName | CustomReward],
        *,
        record: Callable[[RoundRecord, Sequence[CompletionRecord]], None],
        watch: Callable[[RoundRecord], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._publications = publications
        self._options = options
        self._builtins: list[BuiltinName] = [name for name in names if not isinstance(name, CustomReward)]
        self._record = record
        self._watch = watch
        self._round_ids: object = None  # the list of completions that TRL passes to each function of a round
        self._rewards: Rewards = {}
        self.functions = [RewardFunction(self, name) for name in names]

    def of_round(
        self,
        *,
        prompts: Sequence[Prompt],
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
        log_extra: Callable[[str, list[float | None]], None],
        answer: Sequence[str | None] | None = None,
        tests: Sequence[str | None] | None = None,
        **_other_columns: object,
    ) -> Rewards:
        """Return the built-in rewards of this process' completions, computed once for all functions of a round.

        Raises:
            InvalidGroupError: the completions of all processes are not whole groups of one prompt each.
            WrongAnswerError: the service's scores are not about the tokens that were sampled.
            MainProcessError: in the other processes, if the main process failed.
            the client's error that stopped the publication or the request, in the main process.
        """
        if completion_ids is self._round_ids:
            return self._rewards
        unknown = [None] * len(completions)
        texts = list(map(_text, completions))
        judged = judge_all(texts, answer or unknown, tests or unknown)
        mine = list(
            map(SampledCompletion, prompts, texts, prompt_ids, completion_ids, loss_mask, finish_reason, judged)
        )
        samples = gather_from_all(mine)
        step = trainer_state.global_step
        asked = whole_round(samples, group_size[0], step=step)

        def score() -> tuple[Rewards, dict[str, list[float | None]]]:
            scored = self._score(asked, samples, step, mode[0], generate_seconds[0])
            completions = _completion_records(scored, self._has_norms, step=step, mode=mode[0])
            record = _round_record(scored, round_health(completions), step=step, mode=mode[0])
            self._record(record, completions)
            self._watch(record)
            log_metrics({name: value for name, value in asdict(record).items() if name in METRICS}, log_metric)
            norms: list[float | None] = [score.scaled_grad_norm for score in scored.scores]
            ranks: list[float | None] = [score.rank for score in scored.scores]
            return scored.rewards, {NORM_COLUMN: norms, RANK_COLUMN: ranks} if self._has_norms else {}

        rewards, table = on_main_process(score)
        own = slice(process_rank() * len(mine), (process_rank() + 1) * len(mine))
        for column, values in table.items():
            log_extra(column, values[own])
        self._rewards = {name: values[own] for name, values in rewards.items()}
        self._round_ids = completion_ids
        return self._rewards

    def _score(
        self, asked: Round, samples: Sequence[SampledCompletion], step: int, mode: Mode, generate_seconds: float
    ) -> _ScoredRound:
        started = perf_counter()
        publication = self._publications.at(step)
        published = perf_counter()
        timings: list[Timing] = []
        groups = score_in_chunks(asked.groups(), lambda chunk: self._ask(chunk, publication, timings))
        scores = [score for group in groups for score in group.completions]
        asked.check_tokens(scores)
        seconds = {
            "generate_seconds": generate_seconds,
            "publish_seconds": publication.seconds,
            "wait_seconds": published - started,
            "score_seconds": perf_counter() - published,
            "score_queue_seconds": sum(timing.queue_seconds for timing in timings),
            "score_compute_seconds": sum(timing.compute_seconds for timing in timings),
        }
        rewards = self._rewards_of(groups, samples, f"{self._options.seed}/{mode}/{step}")
        return _ScoredRound(samples, scores, asked.group_size, rewards, publication, seconds)

    def _rewards_of(self, scored: Sequence[GroupScore], samples: Sequence[SampledCompletion], seed: str) -> Rewards:
        judged = iter([sample.judged for sample in samples])
        groups = [
            ScoredGroup(group.completions, [next(judged) for _ in group.completions], f"{seed}/{index}")
            for index, group in enumerate(scored)
        ]
        rules = self._options.rules
        return {
            name: [reward for group in groups for reward in rewards_of(name, group, rules)] for name in self._builtins
        }

    @property
    def _has_norms(self) -> bool:
        return "norm" in needed_parts(self._builtins)

    def _ask(self, groups: Sequence[Group], publication: PublishResult, timings: list[Timing]) -> list[GroupScore]:
        """Return scores under exactly the published weights; add the service's own timing to ``timings``."""
        response = self._client.score(
            groups,
            weight_version=publication.weight_version,
            weight_digest=publication.weight_digest,
            wait_seconds=self._options.wait_seconds,
            compute=needed_parts(self._builtins),
            reward=asked_reward(self._builtins),
            ties=self._options.rules.ties,
            truncated=self._options.truncated,
        )
        timings.append(response.timing)
        return response.groups


class RewardFunction:
    """One of a run's rewards, as TRL calls it. TRL logs ``rewards/<name>/mean``."""

    def __init__(self, rounds: RoundRewards, reward: BuiltinName | CustomReward) -> None:
        self.__name__ = reward.name if isinstance(reward, CustomReward) else reward
        self._rounds = rounds
        self._reward: BuiltinName | CustomReward = reward

    def __call__(self, **columns: Any) -> list[float | None]:  # noqa: ANN401 - what TRL hands to reward functions
        """Return one reward per completion of this process. Raises as ``RoundRewards.of_round``."""
        rewards = self._rounds.of_round(**columns)
        if isinstance(self._reward, CustomReward):
            return self._reward.function(**columns)
        return [*rewards[self._reward]]


def _text(completion: Text) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


@dataclass(frozen=True, slots=True)
class _ScoredRound:
    """The completions of a round, group after group, with their scores, rewards and times."""

    samples: Sequence[SampledCompletion]
    scores: Sequence[CompletionScore]
    group_size: int
    rewards: Rewards
    publication: PublishResult
    seconds: Mapping[str, float]


def _round_record(scored: _ScoredRound, health: RoundHealth, *, step: int, mode: Mode) -> RoundRecord:
    ids = [sample.completion_ids for sample in scored.samples]
    first_rewards = next(iter(scored.rewards.values()), [0.0] * len(ids))
    starts, size = range(0, len(ids), scored.group_size), scored.group_size
    pairs = [(first_rewards[start : start + size], list(map(len, ids[start : start + size]))) for start in starts]
    measured: dict[str, Any] = {
        **score_metrics(scored.scores, ids, weight_version=scored.publication.weight_version),
        **scored.seconds,
        **asdict(health),
    }
    return RoundRecord(
        step=step,
        mode=mode,
        weight_digest=scored.publication.weight_digest,
        num_groups=len(starts),
        num_completions=len(ids),
        reward_length_correlation=statistics.correlation_within_groups(pairs),
        accuracy=mean(sample.judged.is_correct for sample in scored.samples),
        sent_bytes=scored.publication.sent_bytes,
        **measured,
    )


def _completion_records(scored: _ScoredRound, has_norms: bool, *, step: int, mode: Mode) -> list[CompletionRecord]:
    return [
        CompletionRecord(
            step=step,
            mode=mode,
            group=position // scored.group_size,
            index=position % scored.group_size,
            prompt=sample.prompt,
            completion=sample.text,
            completion_ids=sample.completion_ids,
            finish_reason=sample.finish_reason,
            rank=score.rank if has_norms else None,
            rewards={name: rewards[position] for name, rewards in scored.rewards.items()},
            final_answer=sample.judged.final,
            is_correct=sample.judged.is_correct,
            weight_version=scored.publication.weight_version,
            **{name: getattr(score, name) for name in SCORE_FIELDS},
        )
        for position, (sample, score) in enumerate(zip(scored.samples, scored.scores, strict=True))
    ]
