"""A part of the sweep: one family of each mechanism, and by night those that people train; ``make sweep`` has all."""

from __future__ import annotations

import pytest
import transformers

from tests.support.model_table import PAGE
from tests.sweep.check import EXACT, check
from tests.sweep.families import families
from tests.sweep.page import made_with, row, rows

TRAINED = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_text",
    "gemma3_text",
    "gemma4_text",
    "gpt_oss",
    "llama4_text",
    "deepseek_v3, yarn",
    "glm4_moe",
    "smollm3",
    "olmo3",
    "granitemoehybrid",
    "lfm2",
    "falcon_h1, scaled",
    "qwen2_5_vl",
    "mistral3",
    "gemma3",  # test_checkpoint.py has such a vision tower in the fast tier
]
MECHANISMS = {
    "rotary factors of the longest position": ["phi3, longrope"],
    "those over a part of the head": ["phi3, longrope over a part of the head"],
    "latent attention under such factors": ["minicpm3, longrope"],
    "rotary frequencies that grow": ["llama, dynamic"],
    "windows in the mask alone": ["qwen2_moe, windows"],
    "the strongest keys alone": ["doge"],
    "an indexer that chooses keys": ["deepseek_v32"],
    "attention that is not contiguous": ["jetmoe"],
    "in place on an embedding": ["ctrl"],
    "positions in the mask": ["bloom"],
    "a scan": ["mamba2"],
    "a shared transformer": ["zamba2"],
    "both directions": ["bert, both directions"],
}  # fmt: skip
SECOND_OF_A_MECHANISM = ["phimoe, longrope", "phimoe", "glm_moe_dsa", "afmoe", "falcon, alibi"]
CHOSEN = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in (*TRAINED, *SECOND_OF_A_MECHANISM)),
    *(name for names in MECHANISMS.values() for name in names),
]
FAMILIES = families()


@pytest.mark.parametrize("name", CHOSEN)
def test_the_norms_of_a_family_are_those_of_the_loop_in_float64(name: str) -> None:
    outcome = check(FAMILIES[name])
    assert outcome.verdict in EXACT, outcome
    assert rows(PAGE.read_text())[name] == row(outcome), "run make sweep SWEEP=--write"


def test_a_model_that_needs_an_image_is_refused_by_name() -> None:
    outcome = check(FAMILIES["blip"])
    assert outcome.verdict == "refused", outcome


def test_the_page_has_every_model_type_of_its_version() -> None:
    page = PAGE.read_text()
    if made_with(page) != transformers.__version__:
        pytest.skip(f"the page is about transformers {made_with(page)}")
    assert rows(page).keys() == FAMILIES.keys()


def test_the_page_says_of_no_family_that_it_is_wrong_or_ends_the_engine() -> None:
    verdicts = {line.split(" | ")[2].removesuffix(" |") for line in rows(PAGE.read_text()).values()}
    assert verdicts <= {*EXACT, "refused"}
