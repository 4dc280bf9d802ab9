"""The shapes that OpenRLHF and slime send to a remote reward model, and what they expect back."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vigor_client.schemas.prompts import MAX_MESSAGES, GivenPrompt, Message
from vigor_client.schemas.scoring import MAX_GROUPS


class _RewardRequest(BaseModel):
    # Other fields are not read, and not held until a group is whole: the labels, which VIGOR does not need, and the
    # fields that newer versions add.
    model_config = ConfigDict(frozen=True, extra="ignore")


class OpenRLHFRequest(_RewardRequest):
    """``POST /openrlhf/get_reward``, as OpenRLHF 0.11 sends it with one sample, and 0.9 with many."""

    query: list[str] = Field(max_length=MAX_GROUPS, description="Prompt and response, special tokens written out.")
    prompts: list[str] = Field(max_length=MAX_GROUPS)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if len(self.query) != len(self.prompts):
            raise ValueError(f"{len(self.query)} `query` for {len(self.prompts)} `prompts`")
        for index, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if not prompt or not query.startswith(prompt):
                raise ValueError(
                    f"`query` {index} does not begin with its prompt: where the response begins is unknown"
                )
        return self


class OpenRLHFRewards(BaseModel):
    """The answer that OpenRLHF expects: finite numbers, as many as there are queries."""

    rewards: list[float] = Field(description="The rank reward, 1 is best, -1 is worst.")
    scores: list[float] = Field(description="The same in 0..1: its dynamic filter keeps no group whose mean is 0.")
    extra_logs: dict[str, list[float]]


class SlimeRequest(_RewardRequest):
    """``POST /slime/reward``, as slime's ``remote_rm`` sends it."""

    prompt: str | list[Message] = Field(min_length=1, max_length=2**24, description="As text, or as chat messages.")
    response: str

    @model_validator(mode="after")
    def _check_messages(self) -> Self:
        if isinstance(self.prompt, list) and len(self.prompt) > MAX_MESSAGES:
            raise ValueError(f"`prompt` has {len(self.prompt)} messages; {MAX_MESSAGES} are the limit")
        return self

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        """Check messages as those of a score request are."""
        if isinstance(self.prompt, list):
            try:
                self.given_prompt()
            except ValidationError as error:
                raise ValueError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def given_prompt(self) -> GivenPrompt:
        """Return the prompt as a score request has it."""
        if isinstance(self.prompt, str):
            return GivenPrompt(prompt=self.prompt)
        return GivenPrompt(messages=self.prompt)
