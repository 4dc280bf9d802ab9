"""From scores to statuses, ranks and rewards, and what a request cost. Pure: the ranking itself is the client's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from operator import attrgetter

from vigor_client.ranking import rank_rewards, ranks
from vigor_client.schemas.scoring import (
    CompletionScore,
    CompletionStatus,
    GroupLine,
    GroupScore,
    LastLine,
    RewardName,
    ScoreResponse,
    ScoringOptions,
    Timing,
    TruncatedRule,
    Usage,
)
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence
from vigor_service.scheduling.scheduler import RequestScores
from vigor_service.scoring.tokenization import EncodedGroup


def sequences_to_score(groups: Sequence[EncodedGroup], truncated: TruncatedRule) -> list[TokenSequence]:
    """Return each sequence that needs the engine once, in order of appearance."""
    return list(dict.fromkeys(_computed(groups, truncated)))


def grade(model: str, request: ScoringOptions, groups: Sequence[EncodedGroup], scored: RequestScores) -> ScoreResponse:
    """Rank every group and account for the request."""
    graded = [grade_group(group, scored.scores, request) for group in groups]
    return ScoreResponse(groups=graded, **dict(last_line(model, request, groups, scored)))


def last_line(model: str, request: ScoringOptions, groups: Sequence[EncodedGroup], scored: RequestScores) -> LastLine:
    """Account for the request."""
    return LastLine(
        model=model,
        weight_version=scored.weights.version,
        weight_digest=scored.weights.digest,
        reward=request.reward,
        usage=_usage(groups, request.truncated, scored),
        timing=Timing(queue_seconds=scored.queue_seconds, compute_seconds=scored.compute_seconds),
    )


def group_line(
    index: int, groups: Sequence[EncodedGroup], scores: Mapping[TokenSequence, SequenceScore], request: ScoringOptions
) -> GroupLine:
    """Rank the group of this index, alone."""
    return GroupLine(index=index, **dict(grade_group(groups[index], scores, request)))


def whole_answer(lines: Sequence[str]) -> str:
    """Return the answer as a whole, as JSON, from its lines: those of the groups in any order, then the last one."""
    *groups, last = lines
    in_order = sorted(map(GroupLine.model_validate_json, groups), key=attrgetter("index"))
    scores = [GroupScore(**{name: value for name, value in line if name != "index"}) for line in in_order]
    return answer_json(ScoreResponse(groups=scores, **dict(LastLine.model_validate_json(last))))


def grade_group(
    group: EncodedGroup, scores: Mapping[TokenSequence, SequenceScore], request: ScoringOptions
) -> GroupScore:
    """Rank one group, the smallest value first; whatever is not ``ok`` shares the last ranks."""
    judged = [
        _judge(sequence, is_truncated and request.truncated == "worst", scores, request.reward)
        for sequence, is_truncated in zip(group.sequences, group.is_truncated, strict=True)
    ]
    values = [_value(score, request.reward) if status == "ok" else None for status, score in judged]
    group_ranks = ranks(values, ties=request.ties)
    rows = zip(group.sequences, judged, group_ranks, rank_rewards(group_ranks), strict=True)
    return GroupScore(
        id=group.id,
        completions=[
            _completion_score(sequence, status, score, rank, reward, returns_ids=request.return_token_ids)
            for sequence, (status, score), rank, reward in rows
        ],
        prompt_ids=list(group.sequences[0].prompt_ids) if request.return_token_ids else None,
    )


def _computed(groups: Sequence[EncodedGroup], truncated: TruncatedRule) -> Iterator[TokenSequence]:
    """Every completion that needs the engine, repeated ones included."""
    for group in groups:
        for sequence, is_truncated in zip(group.sequences, group.is_truncated, strict=True):
            if sequence.num_loss_tokens > 0 and not (is_truncated and truncated == "worst"):
                yield sequence


def _judge(
    sequence: TokenSequence, is_left_out: bool, scores: Mapping[TokenSequence, SequenceScore], reward: RewardName
) -> tuple[CompletionStatus, SequenceScore]:
    if is_left_out:
        return "truncated", EMPTY_SCORE
    if sequence.num_loss_tokens == 0:
        return "empty", EMPTY_SCORE
    score = scores[sequence]
    return ("ok" if isfinite(_value(score, reward)) else "nonfinite"), score  # another signal may be infinite


def _value(score: SequenceScore, reward: RewardName) -> float:
    """What is ranked: small is good."""
    match reward:
        case "vigor":
            return score.scaled_grad_norm
        case "self_certainty":
            return -score.self_certainty
        case "logprob":
            return -score.mean_logprob
        case "entropy":
            return score.mean_entropy


def _completion_score(
    sequence: TokenSequence,
    status: CompletionStatus,
    score: SequenceScore,
    rank: float,
    reward: float,
    *,
    returns_ids: bool,
) -> CompletionScore:
    return CompletionScore(
        status=status,
        num_tokens=sequence.num_loss_tokens,
        grad_norm=wire_number(score.grad_norm),
        scaled_grad_norm=wire_number(score.scaled_grad_norm),
        rank=rank,
        reward=reward,
        mean_logprob=wire_number(score.mean_logprob),
        mean_entropy=wire_number(score.mean_entropy),
        self_certainty=wire_number(score.self_certainty),
        ids=list(sequence.completion_ids) if returns_ids else None,
    )


def answer_json(answer: ScoreResponse | GroupScore | GroupLine) -> str:
    """Return the answer as ``model_dump_json`` does, a completion at a time.

    One call for all would hold the interpreter, from the event loop too, for as long as the answer is large.
    """
    field = "groups" if isinstance(answer, ScoreResponse) else "completions"
    parts = answer.groups if isinstance(answer, ScoreResponse) else answer.completions
    texts = [part.model_dump_json() if isinstance(part, CompletionScore) else answer_json(part) for part in parts]
    # No text within the answer can look like this: its quotation marks are escaped.
    before, empty, after = answer.model_copy(update={field: []}).model_dump_json().partition(f'"{field}":[]')
    return f"{before}{empty[:-1]}{','.join(texts)}]{after}"


def wire_number(number: float) -> float | None:
    """Return the number as it goes over the wire: null where it is not finite."""
    return number if isfinite(number) else None


def _usage(groups: Sequence[EncodedGroup], truncated: TruncatedRule, scored: RequestScores) -> Usage:
    """Each group's prompt counts once; each completion counts, also when it was not computed."""
    return Usage(
        prompt_tokens=sum(len(group.sequences[0].prompt_ids) for group in groups),
        completion_tokens=sum(len(item.completion_ids) for group in groups for item in group.sequences),
        deduplicated_completions=sum(1 for _ in _computed(groups, truncated)) - len(scored.scores),
    )
