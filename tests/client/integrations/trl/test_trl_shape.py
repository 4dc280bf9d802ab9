"""The TRL that is installed has what is read of it, and one that lacks any of that is refused before it trains."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from vigor_client.integrations.trl.errors import UnsupportedTrlError
from vigor_client.integrations.trl.trl_shape import (
    READ_BY_ADAPTERS,
    READ_BY_VIGOR_TRAINER,
    SUPPORTED_TRL,
    TESTED_TRL,
    check_installed_trl,
    check_trl,
    shape_of,
    shape_of_definitions,
)

EVERYTHING = READ_BY_ADAPTERS + READ_BY_VIGOR_TRAINER
SETTINGS = frozenset(
    {
        "eval_on_start",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "num_iterations",
        "use_vllm",
        "mask_truncated_completions",
        "chat_template_kwargs",
        "max_completion_length",
    }
)
# As much of TRL 1.16 as is read, in its words.
TRAINER = """
class Trainer(Base):
    def __init__(self, model, args, tools, rollout_func):
        self.tools = tools
        self.rollout_func = rollout_func
        self.eos_token_ids = []
        self.chat_template_kwargs = {}
        self.num_generations = 8
        self.num_generations_eval = 8

    def _prepare_inputs(self, batch):
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self._step % generate_every == 0:
            return self._generate_and_score_completions(batch)

    def _log_metric(self, name, value):
        pass

    def _calculate_rewards(self, inputs, prompts, completions, ids):
        reward_kwargs = {}
        reward_kwargs["trainer_state"] = self.state
        reward_kwargs["log_extra"] = self._log_completion_extra
        reward_kwargs["log_metric"] = self._log_metric
        return reward_func(prompts=prompts, completions=completions, completion_ids=ids, **reward_kwargs)

    def _tokenize_prompts(self, prompts):
        return self.processing_class.apply_chat_template(
            conversation=prompts,
            tools=self.tools,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.chat_template_kwargs,
        )["input_ids"]

    def _generate(self, prompts):
        if not prompts:
            return None
        return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images

    def _generate_and_score_completions(self, inputs):
        prompt_ids, completion_ids, mask, completions, logprobs, extra_fields, *_ = self._generate(inputs)
        return self._calculate_rewards(inputs, extra_fields)

class Base:
    def __init__(self, model, args):
        self.state = None
        self.accelerator = None
        self.args = args
        self.model = model
        self.model_wrapped = model
        self.processing_class = None
"""


def check(*, old: str = "", new: str = "", without_setting: str = "") -> None:
    """Check the fake, with one piece of its source replaced or one setting less."""
    assert old in TRAINER
    definitions = ast.parse(TRAINER.replace(old, new) if old else TRAINER).body
    shape = shape_of_definitions(node for node in definitions if isinstance(node, ast.ClassDef))
    check_trl(EVERYTHING, shape, SETTINGS - {without_setting}, installed="1.99.0")


class Bare:
    """A trainer without anything."""


def test_the_installed_trl_has_what_is_read_of_it() -> None:
    check_installed_trl(READ_BY_ADAPTERS)
    check_installed_trl(READ_BY_VIGOR_TRAINER)
    assert version("trl").startswith(TESTED_TRL)


def test_a_trainer_with_all_that_is_read_passes() -> None:
    check()


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("self.state = None", "pass", "GRPOTrainer.state"),
        ("self.accelerator = None", "pass", "GRPOTrainer.accelerator"),
        ("self.args = args", "pass", "GRPOTrainer.args"),
        ("self.model = model", "pass", "GRPOTrainer.model"),
        ("self.model_wrapped = model", "pass", "GRPOTrainer.model_wrapped"),
        ("self.processing_class = None", "pass", "GRPOTrainer.processing_class"),
        ("self.tools = tools", "pass", "GRPOTrainer.tools"),
        ("self.rollout_func = rollout_func", "pass", "GRPOTrainer.rollout_func"),
        ("self.eos_token_ids = []", "pass", "GRPOTrainer.eos_token_ids"),
        ("self.chat_template_kwargs = {}", "pass", "GRPOTrainer.chat_template_kwargs"),
        ("self.num_generations = 8", "pass", "GRPOTrainer.num_generations"),
        ("self.num_generations_eval = 8", "pass", "GRPOTrainer.num_generations_eval"),
        ("self.num_iterations", "1", "num_iterations, _step, _generate_and_score_completions in GRPOTrainer._prepare"),
        ("def _log_metric(self, name, value)", "def _log_metric(self, name)", "GRPOTrainer._log_metric(name, value)"),
        ('reward_kwargs["trainer_state"] = self.state', "pass", "trainer_state"),
        ('reward_kwargs["log_extra"] = self._log_completion_extra', "pass", "log_extra"),
        ('reward_kwargs["log_metric"] = self._log_metric', "pass", "log_metric"),
        ("completion_ids=ids", "ids=ids", "prompts, completions, completion_ids in GRPOTrainer._calculate_rewards"),
        ("            tokenize=True,\n", "", "apply_chat_template(conversation, tools, chat_template"),
        ("tokenize=True,", "tokenize=True, documents=[],", "apply_chat_template(conversation, tools, chat_template"),
        ('["input_ids"]', "", "input_ids, chat_template_kwargs in GRPOTrainer._tokenize_prompts"),
        ("def _generate(self, prompts)", "def _generate(self, inputs)", "GRPOTrainer._generate(prompts)"),
        (
            "tool_mask, completions, logprobs,",
            "completions, tool_mask, logprobs,",
            "8 values from GRPOTrainer._generate",
        ),
        (", images, tool_images\n", ", images\n", "8 values from GRPOTrainer._generate"),
        ("def _generate(", "def _rollout(", "8 values from GRPOTrainer._generate"),
        ("self._generate(inputs)", "self._rollout(inputs)", "in GRPOTrainer._generate_and_score_completions"),
    ],
)
def test_a_trainer_that_lacks_something_is_refused_by_its_name(old: str, new: str, missing: str) -> None:
    with pytest.raises(UnsupportedTrlError) as refused:
        check(old=old, new=new)
    assert missing in str(refused.value)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_configuration_that_lacks_a_setting_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedTrlError, match=rf"\): GRPOConfig.{name}\. Install"):
        check(without_setting=name)


def test_a_refusal_names_both_versions_what_is_missing_and_what_to_do() -> None:
    with pytest.raises(UnsupportedTrlError) as refused:
        check(old="self.rollout_func = rollout_func", new="pass")
    assert str(refused.value) == (
        "TRL 1.99.0 is installed and lacks what vigor-rl reads of it (trl>=1.16,<2, tested with 1.16): "
        "GRPOTrainer.rollout_func. Install a release that was tested, pip install 'trl==1.16.*', or a vigor-rl that "
        "supports this one"
    )


@pytest.mark.parametrize("trainer", [Bare, int], ids=["a class of a file", "a class without source"])
def test_a_class_that_defines_nothing_lacks_everything(trainer: type) -> None:
    with pytest.raises(UnsupportedTrlError) as refused:
        check_trl(EVERYTHING, shape_of(trainer), SETTINGS, installed="1.99.0")
    assert all(each.name in str(refused.value) for each in EVERYTHING if not each.name.startswith("GRPOConfig."))


def test_the_supported_range_is_the_one_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    assert f"trl{SUPPORTED_TRL}" in project["optional-dependencies"]["trainer"]
