"""Chooses the thread that encodes a request: no large one runs on the event loop, and ids never wait for texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import Completion, ScoreRequest
from vigor_service.engine.sequences import TokenSequence
from vigor_service.scoring.encoded import SMALL_REQUEST_COMPLETIONS, SMALL_REQUEST_IDS, EncodedRequest
from vigor_service.scoring.tokenization import Encoder
from vigor_service.threads.preparation import Preparation

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class RequestEncoder:
    """Encodes requests: small requests of token ids at once, all others on the threads of ``preparation``."""

    encoder: Encoder
    preparation: Preparation

    async def encode(self, request: ScoreRequest) -> EncodedRequest:
        """Return the request as token sequences. Raises as ``Encoder.encode`` and ``WorkerPool.run``."""
        completions = [completion for group in request.groups for completion in group.completions]
        return await self._run(request.groups, completions, self.encoder.encode, request)

    async def encode_sample(
        self, prompt: GivenPrompt, completion: Completion, *, add_special_tokens: bool = True
    ) -> TokenSequence:
        """Return the same as ``Encoder.encode_sample``. Raises as that method and as ``WorkerPool.run``."""
        encode = self.encoder.encode_sample
        return await self._run(
            [prompt], [completion], encode, prompt, completion, add_special_tokens=add_special_tokens
        )

    async def _run(
        self,
        prompts: Sequence[GivenPrompt],
        completions: Sequence[Completion],
        work: Callable[_P, _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        prompt_ids, ids = [prompt.prompt_ids for prompt in prompts], [completion.ids for completion in completions]
        if None in prompt_ids or None in ids:
            return await self.preparation.run_on_texts(work, *args, **kwargs)
        num_ids = sum(len(each) for each in prompt_ids + ids if each is not None)
        if len(ids) <= SMALL_REQUEST_COMPLETIONS and num_ids <= SMALL_REQUEST_IDS:
            return work(*args, **kwargs)
        return await self.preparation.run(work, *args, **kwargs)
