"""The reward functions that `VigorTrainer` calls: whole groups of sampled ids, scored by exactly this round's weights.

The ids are the sampled ones, end-of-sequence token included, after the prompt ids that generation used; text is never
tokenized again. Every process hands in its slice, the main process asks the service once for all rewards, each gets its
slice back. Stock TRL gives its reward functions neither those prompt ids nor the mask of tokens that tools wrote, so
`VigorReward`, which is for stock TRL, tokenizes prompts itself and refuses tools.
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
from vigor_client.schemas.scoring import ComputeName, FinishReason, RewardName, TruncatedRule
from vigor_trainer.config import BuiltinName
from vigor_trainer.data.answers import judge
from vigor_trainer.monitoring import statistics
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.rewards.custom import CustomReward
from vigor_trainer.rewards.groups import SampledCompletion, ScoreOptions, whole_round
from vigor_trainer.rewards.rules import ScoredGroup, needed_parts, rewards_of

if TYPE_CHECKING:
    from transformers import TrainerState


Text = str | list[dict[str, Any]]
Mode = Literal["train", "eval"]
Rewards = Mapping[BuiltinName, list[float]]


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
        record: Callable[[RoundRecord], None],
    ) -> None:
        self._client = client
        self._publications = publications
        self._options = options
        self._builtins: list[BuiltinName] = [name for name in names if not isinstance(name, CustomReward)]
        self._record = record
        self._round_ids: object = None  # the list of completions that TRL hands to each function of a round
        self._rewards: Rewards = {}
        self.functions = [RewardFunction(self, name) for name in names]

    def of_round(
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
    ) -> Rewards:
        """Return the built-in rewards of this process' completions; all functions of a round get the same.

        Raises:
            InvalidGroupError: the completions of all processes are not whole groups of one prompt each.
            WrongAnswerError: the service's scores are not about the tokens that were sampled.
            MainProcessError: in the other processes, when the one that scores failed.
            whatever stopped the publication or the request: the client's errors.
        """
        if completion_ids is self._round_ids:
            return self._rewards
        answers = answer or [None] * len(completions)
        judged = [judge(_text(completion), expected) for completion, expected in zip(completions, answers, strict=True)]
        mine = list(map(SampledCompletion, prompt_ids, completion_ids, loss_mask, finish_reason, judged))
        samples = gather_from_all(mine)
        step = trainer_state.global_step
        asked = whole_round(samples, group_size[0], step=step)

        def score() -> Rewards:
            scored, record = self._score(asked, samples, step, mode[0], generate_seconds[0])
            self._record(record)
            log_metrics({name: value for name, value in asdict(record).items() if name in METRICS}, log_metric)
            return scored

        rewards = on_main_process(score)
        start = process_rank() * len(mine)
        self._rewards = {name: values[start : start + len(mine)] for name, values in rewards.items()}
        self._round_ids = completion_ids
        return self._rewards

    def _score(
        self, asked: Round, samples: Sequence[SampledCompletion], step: int, mode: Mode, generate_seconds: float
    ) -> tuple[Rewards, RoundRecord]:
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
        rewards = self._rewards_of(scored, samples, f"{self._options.seed}/{mode}/{step}")
        return rewards, _round_record(
            groups, samples, scored, rewards, publication, step=step, mode=mode, seconds=seconds
        )

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

    def _ask(self, groups: Sequence[Group], publication: PublishResult) -> list[GroupScore]:
        """Ask for scores under exactly the published weights."""
        compute = needed_parts(self._builtins)
        return self._client.score(
            groups,
            weight_version=publication.weight_version,
            weight_digest=publication.weight_digest,
            wait_seconds=self._options.wait_seconds,
            compute=compute,
            reward="vigor" if "norm" in compute else "logprob",
            truncated=self._options.truncated,
        ).groups


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


def _scores(groups: Sequence[GroupScore]) -> Iterator[CompletionScore]:
    return (score for group in groups for score in group.completions)


def _round_record(
    groups: Sequence[Group],
    samples: Sequence[SampledCompletion],
    scored: Sequence[GroupScore],
    rewards: Rewards,
    publication: PublishResult,
    *,
    step: int,
    mode: Mode,
    seconds: Mapping[str, float],
) -> RoundRecord:
    first = iter(next(iter(rewards.values()), [0.0] * len(samples)))
    pairs = [
        ([next(first) for _ in group.completions], [len(each.ids or []) for each in group.completions])
        for group in groups
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
        accuracy=mean(sample.judged.is_correct for sample in samples),
        sent_bytes=publication.sent_bytes,
        **measured,
    )
