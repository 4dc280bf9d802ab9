"""Checks, before training starts, that the installed TRL has everything that this code reads, private parts included.

Reward functions get things that TRL does not document as stable, and `vigor-trainer` overrides a private method. A
release that moves one of them would give wrong rewards without an error. So TRL's classes are compared with a table of
the parts that are read: their source is parsed, and none of it is run.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from vigor_client.integrations.trl.errors import UnsupportedTrlError

SUPPORTED_TRL = ">=1.16,<2"
"""As in the package's extra `trainer`."""
TESTED_TRL = "1.16"


@dataclass(frozen=True, slots=True)
class ClassShape:
    """The definitions of a class and its bases, from their source. Of methods with the same name the first counts."""

    methods: dict[str, ast.FunctionDef]
    attributes: frozenset[str]

    def names_in(self, method: str) -> set[str]:
        """Return every variable, attribute, keyword and string in a method's body; empty if the method is missing."""
        return {name for node in self._nodes(method) for name in _names(node)}

    def parameters(self, method: str) -> list[str]:
        """Return the positional parameters of a method."""
        return [each.arg for each in self.methods[method].args.args] if method in self.methods else []

    def returned(self, method: str) -> list[str]:
        """Return the variables of the tuple that a method ends with."""
        match self.methods.get(method):
            case ast.FunctionDef(body=[*_, ast.Return(value=ast.Tuple(elts=items))]):
                return [ast.unparse(item) for item in items]
            case _:
                return []

    def keywords(self, method: str, called: str) -> set[str]:
        """Return the named arguments of all calls of ``x.called(…)`` in a method."""
        calls = [node for node in self._nodes(method) if isinstance(node, ast.Call)]
        wanted = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == called]
        return {keyword.arg for call in wanted for keyword in call.keywords if keyword.arg}

    def _nodes(self, method: str) -> Iterable[ast.AST]:
        return ast.walk(self.methods[method]) if method in self.methods else ()


@dataclass(frozen=True, slots=True)
class Expectation:
    """One part of TRL that this code reads: its name in errors, and a test that trainer and configuration have it."""

    name: str
    holds: Callable[[ClassShape, frozenset[str]], bool]


def _attribute(name: str) -> Expectation:
    return Expectation(f"GRPOTrainer.{name}", lambda trainer, _: name in trainer.attributes)


def _setting(name: str) -> Expectation:
    return Expectation(f"GRPOConfig.{name}", lambda _, settings: name in settings)


def _mention(method: str, *names: str) -> Expectation:
    text = f"{', '.join(names)} in GRPOTrainer.{method}"
    return Expectation(text, lambda trainer, _: trainer.names_in(method).issuperset(names))


def _parameters(method: str, *names: str) -> Expectation:
    text = f"GRPOTrainer.{method}({', '.join(names)})"
    return Expectation(text, lambda trainer, _: trainer.parameters(method) == ["self", *names])


def _keywords(method: str, called: str, *names: str) -> Expectation:
    text = f"{called}({', '.join(names)}) in GRPOTrainer.{method}"
    return Expectation(text, lambda trainer, _: trainer.keywords(method, called) == set(names))


def _returns(method: str, places: dict[int, str], *, length: int) -> Expectation:
    text = f"{length} values from GRPOTrainer.{method}, {', '.join(f'{name} at {at}' for at, name in places.items())}"

    def holds(trainer: ClassShape, _: frozenset[str]) -> bool:
        returned = trainer.returned(method)
        return len(returned) == length and all(returned[place] == name for place, name in places.items())

    return Expectation(text, holds)


READ_BY_ADAPTERS = (
    # the call of a reward function
    _mention("_calculate_rewards", "prompts", "completions", "completion_ids"),
    _mention("_calculate_rewards", "trainer_state", "log_extra", "log_metric", "_log_metric"),
    _parameters("_log_metric", "name", "value"),
    _attribute("state"),
    # the tokenization of prompts, and what would change it
    _keywords(
        "_tokenize_prompts",
        "apply_chat_template",
        *("conversation", "tools", "chat_template", "add_generation_prompt", "tokenize", "return_dict"),
    ),
    _mention("_tokenize_prompts", "input_ids", "chat_template_kwargs"),
    _attribute("chat_template_kwargs"),
    _attribute("tools"),
    _attribute("rollout_func"),
    # the tokens that end a completion
    _attribute("eos_token_ids"),
    # the time by which a callback must publish: TRL generates in every micro step that is a multiple of this product
    _mention("_prepare_inputs", "steps_per_generation", "num_iterations", "_step", "_generate_and_score_completions"),
    *map(_setting, ("eval_on_start", "gradient_accumulation_steps", "steps_per_generation", "num_iterations")),
)
"""The parts of TRL that `VigorReward` and `WeightPublisher` read."""

READ_BY_VIGOR_TRAINER = (
    _parameters("_generate", "prompts"),
    _returns("_generate", {0: "prompt_ids", 1: "completion_ids", 2: "tool_mask", 5: "extra_fields"}, length=8),
    _mention("_generate_and_score_completions", "_generate", "extra_fields", "_calculate_rewards"),
    *map(_attribute, ("accelerator", "args", "eos_token_ids", "model", "model_wrapped", "processing_class")),
    *map(_attribute, ("num_generations", "num_generations_eval", "state")),
    _mention("_calculate_rewards", "prompts", "completions", "completion_ids", "trainer_state", "log_metric"),
    *map(_setting, ("use_vllm", "mask_truncated_completions", "chat_template_kwargs", "max_completion_length")),
)
"""The parts of TRL that `vigor-trainer` reads."""


@cache
def check_installed_trl(expectations: tuple[Expectation, ...]) -> None:
    """Check the installed TRL. If TRL is not installed, the caller is another trainer, and nothing is checked.

    Raises:
        UnsupportedTrlError: see `check_trl`.
    """
    if find_spec("trl") is None:
        return
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage] - exported lazily

    check_trl(expectations, shape_of(GRPOTrainer), settings_of(GRPOConfig), installed=version("trl"))


def check_trl(
    expectations: Sequence[Expectation], trainer: ClassShape, settings: frozenset[str], *, installed: str
) -> None:
    """Check a trainer and the names of its settings, of TRL's version ``installed``.

    Raises:
        UnsupportedTrlError: TRL lacks one of ``expectations``; names it, both versions and what to do.
    """
    missing = [each.name for each in expectations if not each.holds(trainer, settings)]
    if missing:
        raise UnsupportedTrlError(
            f"TRL {installed} is installed and lacks what vigor-rl reads of it (trl{SUPPORTED_TRL}, tested with "
            f"{TESTED_TRL}): {'; '.join(missing)}. Install a release that was tested, pip install "
            f"'trl=={TESTED_TRL}.*', or a vigor-rl that supports this one"
        )


def settings_of(config: type) -> frozenset[str]:
    """Return the names of a configuration's fields."""
    return frozenset(field.name for field in dataclasses.fields(config))


def shape_of(cls: type) -> ClassShape:
    """Return the shape of a class and its bases. A class without source, such as `object`, defines nothing."""
    return shape_of_definitions(node for base in inspect.getmro(cls) for node in _definitions(base))


def shape_of_definitions(definitions: Iterable[ast.ClassDef]) -> ClassShape:
    """Return the shape of a class from its definition and those of its bases, in Python's method resolution order."""
    methods: dict[str, ast.FunctionDef] = {}
    attributes: set[str] = set()
    for node in definitions:
        functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
        for function in functions:
            methods.setdefault(function.name, function)
            attributes.update(_assigned(function))
    return ClassShape(methods, frozenset(attributes | methods.keys()))


def _definitions(cls: type) -> list[ast.ClassDef]:
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # built in
        return []
    parsed = ast.parse(Path(file).read_text(encoding="utf-8") if file else "")
    return [node for node in parsed.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__]


def _assigned(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the attributes of ``self`` that a method sets."""
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass


def _names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            yield name
        case ast.Constant(value=str(text)):
            yield text
        case _:
            return
