"""Turns scores into statuses, ranks, rewards and the lines of an answer. Pure; the ranking itself is in the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from vigor_client.ranking import rank_rewards, ranks
from vigor_client.schemas.scoring import (
    CompletionScore,
    CompletionStatus,
    GroupLine,
    LastLine,
    RewardName,
    ScoringOptions,
    Timing,
    Usage,
)
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence
from vigor_service.scheduling.jobs import RequestScores
from vigor_service.scoring.encoded import EncodedRequest


def group_line(request: EncodedRequest, index: int, scores: Mapping[TokenSequence, SequenceScore]) -> GroupLine:
    """Rank one group, the smallest value first; each completion that is not ``ok`` shares the last ranks."""
    group, options = request.groups[index], request.options
    judged = [
        (sequence, *_judge(sequence, status, scores, options.reward))
        for sequence, status in group.statuses(options.truncated)
    ]
    values = [_value(score, options.reward) if status == "ok" else None for _, status, score in judged]
    group_ranks = ranks(values, ties=options.ties)
    rows = zip(judged, group_ranks, rank_rewards(group_ranks), strict=True)
    return GroupLine(
        index=index,
        id=group.id,
        completions=[
            _completion_score(sequence, status, score, rank, reward, options)
            for (sequence, status, score), rank, reward in rows
        ],
        prompt_ids=list(group.sequences[0].prompt_ids) if options.return_token_ids else None,
    )


def last_line(model: str, request: EncodedRequest, scored: RequestScores) -> LastLine:
    """Return what all groups share: the weights that scored them, and the tokens and time of the request."""
    return LastLine(
        model=model,
        weight_version=scored.weights.version,
        weight_digest=scored.weights.digest,
        reward=request.options.reward,
        usage=Usage(
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            deduplicated_completions=request.num_repeated,
        ),
        timing=Timing(queue_seconds=scored.queue_seconds, compute_seconds=scored.compute_seconds),
    )


def line_json(line: GroupLine) -> str:
    """Return the same JSON as ``model_dump_json``, serialized one completion at a time.

    A single call for all completions would hold Python's global lock for the whole line, and block the event loop.
    """
    completions = ",".join(completion.model_dump_json() for completion in line.completions)
    return _with_list(line.model_copy(update={"completions": []}).model_dump_json(), "completions", completions)


def whole_answer(lines: Sequence[str]) -> str:
    """Return the lines of an answer as the JSON of one ``ScoreResponse``. The lines of groups may be in any order.

    A group's line is its score with ``index`` in front, and the last line is the answer without ``groups``. So the
    texts are joined without being parsed.
    """
    *group_lines, last = lines
    in_order = sorted(map(_index_and_score, group_lines))
    before, usage, after = last.partition('"usage":{')
    return _with_list(f'{before}"groups":[],{usage}{after}', "groups", ",".join(score for _, score in in_order))


def wire_number(number: float) -> float | None:
    """Return the number for a JSON response: None (null) if it is not finite."""
    return number if isfinite(number) else None


def _judge(
    sequence: TokenSequence,
    status: CompletionStatus | None,
    scores: Mapping[TokenSequence, SequenceScore],
    reward: RewardName,
) -> tuple[CompletionStatus, SequenceScore]:
    if status is not None:
        return status, EMPTY_SCORE
    score = scores[sequence]
    return ("ok" if isfinite(_value(score, reward)) else "nonfinite"), score  # only the ranked value has to be finite


def _value(score: SequenceScore, reward: RewardName) -> float:
    """Return the value by which completions are ranked; smaller is better."""
    match reward:
        case "vigor":
            return score.scaled_grad_norm
        case "self_certainty":
            return -score.self_certainty
        case "logprob":
            return -score.mean_logprob
        case "entropy":
            return score.mean_entropy
        case "p_norm":
            return -score.mean_probability
        case "sum_logprob":
            return -score.sum_logprob


def _completion_score(
    sequence: TokenSequence,
    status: CompletionStatus,
    score: SequenceScore,
    rank: float,
    reward: float,
    options: ScoringOptions,
) -> CompletionScore:
    norm = score if "norm" in options.compute else EMPTY_SCORE
    signals = score if "signals" in options.compute else EMPTY_SCORE
    logprobs = map(wire_number, score.token_logprobs or ())
    return CompletionScore(
        status=status,
        num_tokens=sequence.num_loss_tokens,
        grad_norm=wire_number(norm.grad_norm),
        scaled_grad_norm=wire_number(norm.scaled_grad_norm),
        rank=rank,
        reward=reward,
        mean_logprob=wire_number(signals.mean_logprob),
        mean_entropy=wire_number(signals.mean_entropy),
        self_certainty=wire_number(signals.self_certainty),
        p_norm=wire_number(signals.mean_probability),
        sum_logprob=wire_number(signals.sum_logprob),
        token_logprobs=list(logprobs) if "token_logprobs" in options.compute else None,
        ids=list(sequence.completion_ids) if options.return_token_ids else None,
    )


def _with_list(text: str, name: str, items: str) -> str:
    """Fill the empty list of this name. Text within the JSON cannot match it, since its quotation marks are escaped."""
    before, empty, after = text.partition(f'"{name}":[]')
    return f"{before}{empty[:-1]}{items}]{after}"


def _index_and_score(line: str) -> tuple[int, str]:
    index, _, score = line.removeprefix('{"index":').partition(",")
    return int(index), f"{{{score}"
