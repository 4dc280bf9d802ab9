"""Sampling with `generate`, compared with plain loops over one sequence at a time."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_tokenizer
from vigor_trainer.evaluation.models import end_ids, sampler_of
from vigor_trainer.evaluation.sampling import GenerateSampler, SampledTokens
from vigor_trainer.evaluation.vllm_sampling import VllmSampler

MODEL = tiny_model().requires_grad_(False)
PROMPTS = [[256, 84, 82], [256, 68], [256, 81, 198, 54, 71, 64, 83], [256, 72]]
MAX_LENGTH = 12


def sampler(**changes: Any) -> GenerateSampler:  # noqa: ANN401 - settings
    settings: dict[str, Any] = {"max_completion_length": MAX_LENGTH, "batch_size": 3, "seed": 0}
    return sampler_of(MODEL, tiny_tokenizer(), **settings | changes)


def ids_of(groups: list[list[SampledTokens]]) -> list[list[list[int]]]:
    return [[tokens.ids for tokens in group] for group in groups]


def greedy_by_hand(prompt: list[int], ends: set[int]) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + MAX_LENGTH and (len(ids) == len(prompt) or ids[-1] not in ends):
        ids.append(int(MODEL(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_completions_equal_those_of_each_prompt_alone() -> None:
    found = sampler().sample(PROMPTS, num_samples=1, temperature=0.0)
    assert [group[0].ids for group in found] == [greedy_by_hand(prompt, {257}) for prompt in PROMPTS]
    for (tokens,), prompt in zip(found, PROMPTS, strict=True):
        assert tokens.finish_reason == ("stop" if tokens.ids[-1] == 257 else "length"), prompt


def test_a_completion_ends_with_its_first_end_token() -> None:
    whole = greedy_by_hand(PROMPTS[0], set())
    end = whole[4]
    settings: dict[str, Any] = {"max_completion_length": MAX_LENGTH, "batch_size": 2, "seed": 0}
    stopping = GenerateSampler(MODEL, end_ids=frozenset([end]), pad_id=257, **settings)
    ((found,), _) = stopping.sample(PROMPTS[:2], num_samples=1, temperature=0.0)
    assert found.ids == whole[: whole.index(end) + 1]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_entropies_are_those_of_the_models_predictions_at_temperature_one(temperature: float) -> None:
    for prompt, group in zip(PROMPTS, sampler().sample(PROMPTS, num_samples=2, temperature=temperature), strict=True):
        for tokens in group:
            logits = MODEL(torch.tensor([prompt + tokens.ids])).logits[0, len(prompt) - 1 : -1]
            log_p = logits.log_softmax(-1)
            assert tokens.mean_entropy == pytest.approx(float(-(log_p.exp() * log_p).sum(-1).mean()), abs=1e-5)


def test_sampling_is_repeatable_and_differs_between_samples_and_seeds() -> None:
    first = ids_of(sampler().sample(PROMPTS, num_samples=2, temperature=1.0))
    assert ids_of(sampler().sample(PROMPTS, num_samples=2, temperature=1.0)) == first
    assert ids_of(sampler(seed=1).sample(PROMPTS, num_samples=2, temperature=1.0)) != first
    assert first[0][0] != first[0][1]


def test_a_low_temperature_samples_what_greedy_decoding_finds() -> None:
    greedy = ids_of(sampler().sample(PROMPTS, num_samples=1, temperature=0.0))
    assert ids_of(sampler().sample(PROMPTS, num_samples=1, temperature=1e-4)) == greedy


@pytest.mark.parametrize("is_training", [True, False])
def test_the_mode_of_the_model_and_the_random_states_are_left_as_they_were(is_training: bool) -> None:
    MODEL.train(is_training)
    states = torch.get_rng_state(), random.getstate()
    sampler().sample(PROMPTS, num_samples=2, temperature=1.0)
    assert MODEL.training is is_training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    MODEL.eval()


def test_the_models_own_generation_settings_do_not_count() -> None:
    other = tiny_model()
    other.generation_config.update(repetition_penalty=2.0, top_k=1, temperature=0.1, do_sample=True)
    settings: dict[str, Any] = {"max_completion_length": MAX_LENGTH, "batch_size": 3, "seed": 0}
    for temperature in (0.0, 1.0):
        found = sampler_of(other, tiny_tokenizer(), **settings).sample(PROMPTS, num_samples=1, temperature=temperature)
        assert ids_of(found) == ids_of(sampler().sample(PROMPTS, num_samples=1, temperature=temperature))


def test_every_end_token_of_model_and_tokenizer_ends_a_completion() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [7, 9]
    assert end_ids(model, tiny_tokenizer()) == {7, 9, 257}


def test_a_model_without_any_end_token_is_refused() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.pad_token = None  # pyright: ignore[reportAttributeAccessIssue] - properties
    with pytest.raises(ValueError, match="has an end-of-sequence token"):
        end_ids(model, tokenizer)


class FakeVllm:
    """What is used of the module `vllm`: each sample of a prompt is its ids, and one more."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []

    def SamplingParams(self, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - as vLLM's
        self.settings.append(settings)
        return settings

    def LLM(self, **settings: Any) -> FakeVllm:  # noqa: ANN401 - likewise
        self.settings.append(settings)
        return self

    def generate(self, prompts: list[dict[str, list[int]]], settings: dict[str, Any]) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=[*prompt["prompt_token_ids"], index], finish_reason=["stop", "length"][index]
                    )
                    for index in range(settings["n"])
                ]
            )
            for prompt in prompts
        ]


def test_vllm_samples_by_its_own_interface() -> None:
    fake: Any = FakeVllm()
    found = VllmSampler(fake, "a-model", max_completion_length=16, seed=3).sample(
        [[1], [2]], num_samples=2, temperature=0.5
    )
    assert found == [
        [SampledTokens([1, 0], "stop", None), SampledTokens([1, 1], "length", None)],
        [SampledTokens([2, 0], "stop", None), SampledTokens([2, 1], "length", None)],
    ]
    assert fake.settings == [
        {"model": "a-model", "seed": 3, "generation_config": "vllm"},
        {"n": 2, "temperature": 0.5, "max_tokens": 16, "seed": 3},
    ]
