"""slime's remote reward model: the shape of its requests, and the reward."""

from __future__ import annotations

from typing import Self

from pydantic import Field, ValidationError, model_validator

from vigor_client.schemas.prompts import MAX_MESSAGES, GivenPrompt, Message
from vigor_service.compat.text_samples import RewardRequest, TextSamples


class SlimeRequest(RewardRequest):
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
        """Check messages in the same way as those of a score request."""
        if isinstance(self.prompt, list):
            try:
                self.given_prompt()
            except ValidationError as error:
                raise ValueError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def given_prompt(self) -> GivenPrompt:
        """Return the prompt in the form that a score request has."""
        if isinstance(self.prompt, str):
            return GivenPrompt(prompt=self.prompt)
        return GivenPrompt(messages=self.prompt)


async def slime_reward(request: SlimeRequest, samples: TextSamples, *, group_size: int) -> float:
    """Return the rank reward. Errors are not turned into rewards: slime tries ten times, with pauses.

    Raises:
        ServiceError: there is no score; the message says why.
    """
    sequence = await samples.encode(request.given_prompt(), request.response)
    del request
    return (await samples.score(sequence, group_size=group_size)).reward
