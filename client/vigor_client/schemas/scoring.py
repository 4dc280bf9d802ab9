"""The wire contract of scores: whole groups, samples of groups, and the lines of a streamed answer.

Units are in the names; a number that is not finite is ``None`` on the wire.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from vigor_client.schemas.common import Checksum, Mask, Text, TokenId, TokenIds, WeightVersion, WireModel
from vigor_client.schemas.fault_limit import Item
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.prompts import GivenPrompt

MAX_WAIT_SECONDS = 600.0
MAX_GROUPS = 512
MAX_COMPLETIONS_PER_GROUP = 512
MAX_COMPLETIONS = 65_536
"""Maximum number of completions in one request. With more, each step over all of them would delay other requests."""

LINES_MEDIA_TYPE = "application/x-ndjson"
"""Media type of a streamed answer: a caller that accepts it gets each group's scores in a line, once finished."""
BEAT_SECONDS = 10.0
"""Interval, in seconds, at which an empty line is sent while no line is ready."""


FinishReason = Literal["stop", "length"]
RewardName = Literal["vigor", "self_certainty", "logprob", "entropy", "p_norm", "sum_logprob"]
ComputeName = Literal["norm", "signals", "token_logprobs"]
TieRule = Literal["average", "ordinal"]
TruncatedRule = Literal["score", "worst"]
CompletionStatus = Literal["ok", "empty", "truncated", "nonfinite"]


class Completion(WireModel):
    """One sampled completion: its token ids, or its text."""

    ids: TokenIds | None = Field(default=None, description="The sampled token ids, used as they are.")
    text: Text | None = Field(default=None, description="What was sampled after the prompt, to the character.")
    mask: Mask | None = Field(
        default=None,
        description="Same length as `ids`; 0 leaves a token out of the loss, it still conditions what follows.",
    )
    finish_reason: FinishReason | None = Field(
        default=None,
        description="`stop`: it ended by itself; `length`: it was cut off. Text without either is taken as `stop`, and "
        "ends with an end token, which is appended where it has none.",
    )

    @model_validator(mode="after")
    def _check_exactly_one_source(self) -> Self:
        if self.ids is None and self.text is None:
            raise ValueError("needs `text`, or the token ids in `ids`")
        if self.ids is not None and self.text is not None:
            raise ValueError("has `text` and `ids`; give one of them")
        if self.mask is not None and self.ids is None:
            raise ValueError("`mask` belongs to token ids; give `ids` instead of `text`")
        if self.mask is not None and self.ids is not None and len(self.mask) != len(self.ids):
            raise ValueError(f"`mask` has {len(self.mask)} entries for {len(self.ids)} `ids`")
        return self


def _completion_from_shorthand(value: object) -> object:
    """Expand plain text or a plain list of ids, which are shorthands for a completion object."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list):
        return {"ids": cast("list[object]", value)}
    return value


AnyCompletion = Annotated[
    Completion,
    BeforeValidator(_completion_from_shorthand, json_schema_input_type=Completion | str | list[TokenId]),
]


class Group(GivenPrompt):
    """One prompt with all of its sampled completions: what is ranked together."""

    id: Text | None = Field(default=None, max_length=256, examples=["q-17"])
    completions: list[Item[AnyCompletion]] = Field(min_length=1, max_length=MAX_COMPLETIONS_PER_GROUP)


class WeightOptions(WireModel):
    """Which weights must score."""

    weight_version: WeightVersion | None = Field(default=None, description="Score with exactly these weights, or 409.")
    weight_digest: Checksum | None = Field(
        default=None, description="Stronger than the version: the weights' own digest."
    )
    wait_seconds: float = Field(
        default=0.0,
        strict=True,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long to wait for `weight_version` before 409.",
    )


def _is_false(value: object) -> bool:
    return value is False


def _is_default(value: object) -> bool:
    return value == DEFAULT_COMPUTE


DEFAULT_COMPUTE: tuple[ComputeName, ...] = ("norm", "signals")


def compute_for(reward: RewardName) -> tuple[ComputeName, ...]:
    """Return the parts to compute if only this reward is wanted; they include the signals, which cost nothing extra."""
    return DEFAULT_COMPUTE if reward == "vigor" else ("signals",)


class ScoringOptions(WeightOptions):
    """Which weights must score, and how groups are ranked."""

    compute: tuple[ComputeName, ...] = Field(
        default=DEFAULT_COMPUTE,
        min_length=1,
        max_length=3,
        description="What each score holds. Without `norm` no gradient is computed, which costs less than half. "
        "`signals` are the numbers of the predictions; `token_logprobs` gives one number for each loss token.",
        exclude_if=_is_default,
    )
    reward: RewardName = Field(default="vigor", description="What is ranked; it must be computed.")
    ties: TieRule = Field(default="average", description="Equal values share the mean rank, or rank by index.")
    truncated: TruncatedRule = Field(default="score", description="What `finish_reason: length` gets.")
    return_token_ids: bool = Field(
        default=False, strict=True, description="Return the token ids that were scored.", exclude_if=_is_false
    )

    @model_validator(mode="after")
    def _check_reward_is_computed(self) -> Self:
        needed = compute_for(self.reward)[0]
        if needed not in self.compute:
            raise ValueError(f"the reward `{self.reward}` needs `{needed}`; add it to `compute`")
        if len(set(self.compute)) < len(self.compute):
            raise ValueError("`compute` holds a name twice; give each name once")
        return self


_SCORE_EXAMPLE: JsonDict = {
    "groups": [
        {
            "id": "q-17",
            "messages": [{"role": "user", "content": "What is 3 + 4?"}],
            "completions": [
                {"text": "3 + 4 = 7.", "finish_reason": "stop"},
                {"text": "The answer is 8.", "finish_reason": "stop"},
            ],
        }
    ]
}


class ScoreRequest(ScoringOptions):
    """``POST /v1/score``: whole groups to score under the current weights."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SCORE_EXAMPLE]})

    groups: list[Item[Group]] = Field(min_length=1, max_length=MAX_GROUPS)


_SAMPLE_EXAMPLE: JsonDict = {
    "group": "run7/step12/q-17",
    "group_size": 2,
    "index": 0,
    "messages": [{"role": "user", "content": "What is 3 + 4?"}],
    "completion": {"text": "3 + 4 = 7", "finish_reason": "stop"},
}


class SampleRequest(GivenPrompt, ScoringOptions):
    """``POST /v1/score/sample``: one completion of a group whose others come from elsewhere.

    All samples of a group give the same size, prompt and options.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_SAMPLE_EXAMPLE]})

    group: Text = Field(
        min_length=1, max_length=256, description="Its name, the same for all of its samples, never used again."
    )
    group_size: int = Field(strict=True, ge=1, le=MAX_COMPLETIONS_PER_GROUP)
    index: int = Field(strict=True, ge=0, description="Which of the group's completions this is, from 0.")
    completion: AnyCompletion

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        if self.index >= self.group_size:
            raise ValueError(f"`index` is {self.index} in a group of {self.group_size}; indices begin at 0")
        return self


_RETURNED = "The token ids that were scored; only with `return_token_ids`."


def _is_none(value: object) -> bool:
    return value is None


MOST_LINES = 20
"""Maximum number of completions that a printed answer shows."""
_COLUMNS = {
    "group": "group",
    "completion": "completion",
    "status": "status",
    "num_tokens": "tokens",
    "grad_norm": "norm",
    "scaled_grad_norm": "norm · √T",
    "rank": "rank",
    "reward": "reward",
}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


class CompletionScore(WireModel):
    """The result of one completion. Anything but status ``ok`` has no norm of its own meaning."""

    status: CompletionStatus
    num_tokens: int = Field(description="T: tokens that count in the loss.")
    grad_norm: float | None = Field(description="L2 norm of the gradient of the mean negative log-likelihood.")
    scaled_grad_norm: float | None = Field(description="grad_norm times the square root of T; smallest is best.")
    rank: float = Field(description="1 is best, the group's size is worst; ties share the mean of their ranks.")
    reward: float = Field(ge=-1, le=1, description="1 - 2 (rank - 1) / (G - 1); 0 in a group of one.")
    mean_logprob: float | None = Field(description="Mean log-probability of the loss tokens, nats.")
    mean_entropy: float | None = Field(description="Mean entropy of the predictions, nats.")
    self_certainty: float | None = Field(description="Mean over tokens and vocabulary of -log(V p), nats.")
    p_norm: float | None = Field(default=None, description="Mean probability of the loss tokens.")
    sum_logprob: float | None = Field(default=None, description="Log-probability of all loss tokens together, nats.")
    token_logprobs: list[float | None] | None = Field(
        default=None, description="Of each loss token, nats; only if asked for in `compute`.", exclude_if=_is_none
    )
    ids: list[int] | None = Field(default=None, description=_RETURNED, exclude_if=_is_none)


class GroupScore(WireModel):
    """Results of one group, completions in the order of the request."""

    id: str | None = None
    completions: list[CompletionScore]
    prompt_ids: list[int] | None = Field(default=None, description=_RETURNED, exclude_if=_is_none)


class Usage(WireModel):
    """What the request cost."""

    prompt_tokens: int
    completion_tokens: int
    deduplicated_completions: int


class Timing(WireModel):
    """Where the time of the request went."""

    queue_seconds: float
    compute_seconds: float


class ScoreResponse(WireModel):
    """All scores of one request, taken under one version of the weights."""

    model: str
    weight_version: int
    weight_digest: str
    reward: RewardName
    groups: list[GroupScore]
    usage: Usage
    timing: Timing

    def to_records(self) -> list[dict[str, Any]]:
        """Return a flat mapping for each completion, as ``pandas.DataFrame`` takes them.

        ``group`` and ``completion`` are indices in the request; ``group_id`` is the group's own, or None.
        """
        return [
            {"group": index, "group_id": group.id, "completion": position} | completion.model_dump()
            for index, group in enumerate(self.groups)
            for position, completion in enumerate(group.completions)
        ]

    def __str__(self) -> str:
        """Return a short table: a line for each completion, up to ``MOST_LINES`` of them."""
        records = self.to_records()
        lines = [
            list(_COLUMNS.values()),
            *([_cell(record[name]) for name in _COLUMNS] for record in records[:MOST_LINES]),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        left_out = [f"… and {len(records) - MOST_LINES} more"] if len(records) > MOST_LINES else []
        return "\n".join([f"weights {self.weight_version}, ranked by {self.reward}", *table, *left_out])


class GroupLine(WireModel):
    """A line of a streamed answer: one group's results, in whatever order groups are finished."""

    index: int = Field(ge=0, description="Which of the request's groups this is, from 0.")
    id: str | None = None
    completions: list[CompletionScore]
    prompt_ids: list[int] | None = Field(default=None, description=_RETURNED, exclude_if=_is_none)


class LastLine(WireModel):
    """The line that completes a streamed answer: what all of its groups have in common."""

    model: str
    weight_version: int
    weight_digest: str
    reward: RewardName
    usage: Usage
    timing: Timing


class SampleResponse(WireModel):
    """The result of one completion, ranked within its whole group."""

    model: str
    weight_version: int
    weight_digest: str
    reward: RewardName
    group: str
    index: int
    completion: CompletionScore
    prompt_ids: list[int] | None = Field(default=None, description=_RETURNED, exclude_if=_is_none)


class ErrorLine(WireModel):
    """The last line of a streamed answer that failed after its first byte."""

    error: Problem
    retry_after_seconds: float | None = Field(default=None, description="What `Retry-After` would have said.")


ScoreLine = Annotated[GroupLine | LastLine | ErrorLine, Field(union_mode="left_to_right")]
