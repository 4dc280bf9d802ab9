"""Completions of prompts by vLLM, if it is installed: many times as fast on a GPU. Entropies are not measured."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from vigor_trainer.evaluation.sampling import SampledTokens


class VllmSampler:
    """Samples with `vllm.LLM`, which loads the model itself. ``vllm`` is the module."""

    def __init__(self, vllm: ModuleType, model_name: str, *, max_completion_length: int, seed: int) -> None:
        self._sampling_params: Any = vllm.SamplingParams
        self._llm: Any = vllm.LLM(model=model_name, seed=seed, generation_config="vllm")
        self._max_completion_length = max_completion_length
        self._seed = seed

    def sample(
        self, prompts: Sequence[list[int]], *, num_samples: int, temperature: float
    ) -> list[list[SampledTokens]]:
        """Return ``num_samples`` completions of each prompt; temperature 0 is greedy."""
        settings = self._sampling_params(
            n=num_samples, temperature=temperature, max_tokens=self._max_completion_length, seed=self._seed
        )
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings)
        return [[_tokens(completion) for completion in output.outputs] for output in outputs]


def _tokens(completion: Any) -> SampledTokens:  # noqa: ANN401 - vLLM's CompletionOutput
    reason = "length" if completion.finish_reason == "length" else "stop"
    return SampledTokens(list(completion.token_ids), reason, None)
