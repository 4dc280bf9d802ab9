"""Completions of prompts by transformers' `generate`: prompts sorted by length, padded on the left.

Sampling restores the model's mode and torch's random state, so that training continues as without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from vigor_client.integrations.trl.completions import finish_reason
from vigor_client.schemas.scoring import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG_SECONDS = 60.0
"""Interval between progress lines, if they go to a file."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The ids of one completion, its end token included, and how it ended.

    ``mean_entropy`` is that of the predictions at temperature 1, in nats per token; None where it was not measured.
    """

    ids: list[int]
    finish_reason: FinishReason
    mean_entropy: float | None


class Sampler(Protocol):
    """Samples completions of prompts."""

    def sample(
        self, prompts: Sequence[list[int]], *, num_samples: int, temperature: float
    ) -> list[list[SampledTokens]]:
        """Return ``num_samples`` completions of each prompt, in the order of the prompts; temperature 0 is greedy."""
        ...


class EntropyMeter(LogitsProcessor):
    """Records the entropy of each prediction, one number per sequence and step, without changing the logits.

    It sees the logits before the temperature divides them.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:  # noqa: ARG002
        self._steps.append(_entropies(scores))
        return cast("torch.FloatTensor", scores)

    def mean_entropy(self, row: int, num_tokens: int) -> float | None:
        """Return the mean entropy of a sequence's first ``num_tokens`` predictions, in nats; None if there are none."""
        return float(torch.stack([step[row] for step in self._steps[:num_tokens]]).mean()) if num_tokens else None


class GenerateSampler:
    """Samples with a model of transformers. ``end_ids`` end a completion; padding is ``pad_id``."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_ids: frozenset[int],
        pad_id: int,
        max_completion_length: int,
        batch_size: int,
        seed: int,
        shows_progress: bool = False,
    ) -> None:
        self._model = model
        self._end_ids = end_ids
        self._pad_id = pad_id
        self._max_completion_length = max_completion_length
        self._batch_size = batch_size
        self._seed = seed
        self._shows_progress = shows_progress

    def sample(
        self, prompts: Sequence[list[int]], *, num_samples: int, temperature: float
    ) -> list[list[SampledTokens]]:
        """Return ``num_samples`` completions of each prompt; those of similar length are generated together."""
        longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        rows = [index for index in longest_first for _ in range(num_samples)]
        samples: list[list[SampledTokens]] = [[] for _ in prompts]
        with _undisturbed(self._model, self._seed):
            for start in self._watched(range(0, len(rows), self._batch_size)):
                batch = rows[start : start + self._batch_size]
                generated = self._generate([prompts[index] for index in batch], temperature)
                for index, tokens in zip(batch, generated, strict=True):
                    samples[index].append(tokens)
        return samples

    def _watched(self, starts: range) -> Iterable[int]:
        """Yield the starts of batches, with a progress bar in a terminal, and a line per minute in a log."""
        seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
        return tqdm(starts, "batches", disable=not self._shows_progress, mininterval=seconds, maxinterval=seconds)

    def _generate(self, prompts: Sequence[list[int]], temperature: float) -> list[SampledTokens]:
        width, meter = max(map(len, prompts)), EntropyMeter()
        rows = [[self._pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self._model.device
        generate = cast("Callable[..., torch.Tensor]", self._model.generate)
        generated = generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=self._config(temperature),
            logits_processor=LogitsProcessorList([meter]),
        )
        completions = cast("list[list[int]]", generated[:, width:].tolist())  # pyright: ignore[reportUnknownMemberType]
        return [self._tokens(ids, meter, row) for row, ids in enumerate(completions)]

    def _config(self, temperature: float) -> GenerationConfig:
        """Return settings that override all of the model's own; greedy decoding has the neutral values."""
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        greedy: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=self._max_completion_length,
            pad_token_id=self._pad_id,
            eos_token_id=sorted(self._end_ids),
            repetition_penalty=1.0,
            disable_compile=True,
            **(sampling if temperature else greedy),
        )

    def _tokens(self, ids: list[int], meter: EntropyMeter, row: int) -> SampledTokens:
        end = next((position for position, token_id in enumerate(ids, start=1) if token_id in self._end_ids), len(ids))
        return SampledTokens(ids[:end], finish_reason(ids[:end], self._end_ids), meter.mean_entropy(row, end))


def _entropies(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row's distribution, in nats."""
    distribution = torch.distributions.Categorical(logits=logits.float(), validate_args=False)
    return distribution.entropy()


@contextmanager
def _undisturbed(model: torch.nn.Module, seed: int) -> Generator[None]:
    was_training = model.training
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType] - partly untyped
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType] - likewise
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)
