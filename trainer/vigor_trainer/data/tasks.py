"""Prompts to train on, and their answers, which are counted but never rewarded.

A task is spelled as one name: `addition`, `reasoning-gym:<task>`, a path ending in `.jsonl`, or a dataset on the hub.
Every source becomes the columns `prompt` and `answer`. Knows nothing about rewards or models, except whether prompts
are messages for a chat template or plain text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vigor_client import InputError
from vigor_client.cli.jsonl_input import open_input
from vigor_client.models.hub import require_on_hub
from vigor_client.models.model_source import is_path, nearest_file
from vigor_client.schemas.nearest_name import did_you_mean
from vigor_trainer.building import building
from vigor_trainer.data.programs import program_tests
from vigor_trainer.data.prompts import UNRENDERED_COLUMNS, Prompt, prompt_of, refuse_half_character
from vigor_trainer.errors import InvalidTaskError, UnsupportedSettingError

if TYPE_CHECKING:
    from datasets import Dataset  # pyright: ignore[reportMissingTypeStubs] - it has none

ADDITION = "addition"
REASONING_GYM_PREFIX = "reasoning-gym:"
LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
PROMPT_COLUMNS = ("prompt", "question")
ANSWER_COLUMN = "answer"
TESTS_COLUMN = "tests"


@dataclass(frozen=True, slots=True)
class TaskSource:
    """The name of a task, and the settings that are not part of the name."""

    name: str
    split: str = "train"  # hub datasets
    config: str | None = None  # hub datasets
    prompt_column: str | None = None  # None: `prompt` or `question`
    answer_column: str | None = None  # None: `answer`, if it exists
    tests_column: str | None = None  # None: `tests`, if it exists
    size: int = 1000  # generated tasks: number of questions
    seed: int = 0  # generated tasks
    system_prompt: str | None = None  # text of a system message before every prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row, and its place as errors name it."""

    place: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt to train on, its answer or tests if any, and its place as errors name it."""

    place: str
    prompt: Prompt
    answer: str | None
    tests: str | None = None  # JSON of `program_tests`; used instead of the answer


def require_task(name: str) -> None:
    """Return if the name is that of a built-in task, an existing file or directory, or a dataset on the hub.

    Does not read the rows: unusable ones are refused when they are read.

    Raises:
        InvalidTaskError, ModelSourceError: no task has this name; suggests which could be meant.
    """
    path = Path(name)
    if name == ADDITION or name.startswith(REASONING_GYM_PREFIX) or path.is_dir():
        return
    if name.endswith(".json"):
        raise _not_lines(name)
    if path.exists() or name.endswith(LINES_SUFFIXES) or is_path(name):
        _require_lines(path)
        return
    hint = did_you_mean(name, (ADDITION, REASONING_GYM_PREFIX)) or nearest_file(path)
    require_on_hub(name, kind="dataset", hint=hint)


def _require_lines(path: Path) -> None:
    if not path.exists():
        raise InvalidTaskError(f"{path}: there is no such file{nearest_file(path)}")
    if not path.name.endswith(LINES_SUFFIXES):
        raise _not_lines(path)


def _not_lines(file: str | Path) -> InvalidTaskError:
    return InvalidTaskError(f"{file}: give a .jsonl file, one JSON object per line")


def load_task(source: TaskSource, *, has_chat_template: bool) -> Dataset:
    """Return the columns `prompt` and `answer` of `read_task`. Raises as it does."""
    return as_dataset(read_task(source, has_chat_template=has_chat_template))


def read_task(source: TaskSource, *, has_chat_template: bool) -> list[Example]:
    """Return the prompts (messages where the tokenizer has a chat template, else text) with their answers.

    Raises:
        InvalidTaskError: the source cannot be read or is empty, or a row is not understood; names the place.
        UnsupportedSettingError: there is a system prompt, but no chat template that would include it.
    """
    if source.system_prompt is not None and not has_chat_template:
        raise UnsupportedSettingError(
            "--system_prompt: the tokenizer has no chat template that could show it: leave it out, or write it into "
            "the prompts"
        )
    examples = [_example(row, source, has_chat_template=has_chat_template) for row in _rows(source)]
    if not examples:
        raise InvalidTaskError(f"{source.name}: contains no prompts")
    return examples


def as_dataset(examples: Sequence[Example]) -> Dataset:
    """Return the columns `prompt` and `answer`, and `tests` if any row has tests; a missing value is None."""
    from datasets import Dataset, Features, Json, List, Value  # pyright: ignore[reportMissingTypeStubs]

    # As JSON: Arrow would add to each message every key of any other, with null, which templates may render.
    is_chat = isinstance(examples[0].prompt, list)
    kinds = {"prompt": List(Json()) if is_chat else Value("string"), "answer": Value("string")}
    if any(example.tests is not None for example in examples):
        kinds["tests"] = Value("string")
    features = Features(kinds)
    rows = [{name: getattr(example, name) for name in kinds} for example in examples]
    return Dataset.from_list(rows, features=features)  # pyright: ignore[reportUnknownMemberType] - partly untyped


def addition() -> Iterator[Row]:
    """Yield all hundred one-digit additions."""
    for left, right in product(range(10), repeat=2):
        fields = {"question": f"What is {left} + {right}?", "answer": str(left + right)}
        yield Row(f"addition: {left} + {right}", fields)


def _rows(source: TaskSource) -> Iterable[Row]:
    if source.name == ADDITION:
        return addition()
    if source.name.startswith(REASONING_GYM_PREFIX):
        return _reasoning_gym_rows(source)
    if source.name.endswith(LINES_SUFFIXES):
        return _jsonl_rows(Path(source.name))
    if source.name.endswith(".json"):
        raise _not_lines(source.name)
    return _hub_rows(source)


def _reasoning_gym_rows(source: TaskSource) -> Iterator[Row]:
    try:
        import reasoning_gym  # pyright: ignore[reportMissingTypeStubs] - it has none
    except ModuleNotFoundError as error:
        raise InvalidTaskError(f"{source.name} needs a package: pip install reasoning-gym") from error
    task = source.name.removeprefix(REASONING_GYM_PREFIX)
    try:
        create = cast("Callable[..., Sequence[dict[str, Any]]]", reasoning_gym.create_dataset)  # pyright: ignore[reportUnknownMemberType]
        dataset = create(task, size=source.size, seed=source.seed)
    except ValueError as error:
        raise InvalidTaskError(f"{source.name}: {error}") from error
    for index in range(len(dataset)):
        entry = dataset[index]
        fields = {"question": entry["question"], "answer": entry["answer"]}
        yield Row(f"{source.name} entry {index}", fields)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    try:
        with open_input(path) as source:
            for number, line in source.lines():
                yield Row(f"{path}:{number}", _json_object(f"{path}:{number}", line))
    except (OSError, InputError) as error:
        raise InvalidTaskError(str(error) if isinstance(error, InputError) else f"{path}: {error.strerror}") from error


def _json_object(place: str, line: bytes) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidTaskError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8, or numbers with thousands of digits
        raise InvalidTaskError(f"{place}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidTaskError(f"{place}: must be a JSON object, not {type(fields).__name__}")
    return cast("dict[str, object]", fields)


def _hub_rows(source: TaskSource) -> Iterator[Row]:
    import datasets  # pyright: ignore[reportMissingTypeStubs] - it has none

    load = cast("Callable[..., Iterable[dict[str, object]]]", datasets.load_dataset)  # pyright: ignore[reportUnknownMemberType]
    place = f"dataset {source.name!r} (config {source.config}, split {source.split}) did not load"
    with building(place, kind=InvalidTaskError):
        dataset = load(source.name, source.config, split=source.split)
    for index, fields in enumerate(dataset):
        yield Row(f"{source.name}[{source.split}] row {index}", fields)


def _example(row: Row, source: TaskSource, *, has_chat_template: bool) -> Example:
    prompt = _prompt(row, source.prompt_column)
    if isinstance(prompt, str) and has_chat_template:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and not has_chat_template:
        raise InvalidTaskError(f"{row.place}: the prompt is a list of messages, but the tokenizer has no chat template")
    if isinstance(prompt, list) and source.system_prompt is not None:
        prompt = _with_system_prompt(prompt, source.system_prompt, row.place)
    return Example(row.place, prompt, _answer(row, source.answer_column), _tests(row, source.tests_column))


def _with_system_prompt(messages: list[dict[str, Any]], system_prompt: str, place: str) -> list[dict[str, Any]]:
    if messages[0]["role"] == "system":
        raise InvalidTaskError(f"{place}: the prompt has a system message of its own: leave --system_prompt out")
    return [{"role": "system", "content": system_prompt}, *messages]


def _prompt(row: Row, column: str | None) -> Prompt:
    wanted = (column,) if column else PROMPT_COLUMNS
    found = [name for name in wanted if row.fields.get(name) is not None]
    if len(found) != 1:
        needed = " or ".join(f"`{name}`" for name in wanted)
        raise InvalidTaskError(f"{row.place}: needs exactly one of {needed}, has {sorted(row.fields)}")
    if unrendered := [name for name in UNRENDERED_COLUMNS if row.fields.get(name)]:
        raise InvalidTaskError(
            f"{row.place}: remove the column `{unrendered[0]}`, which TRL's GRPO does not put into the prompt"
        )
    try:
        return prompt_of(row.fields[found[0]])
    except ValueError as error:
        raise InvalidTaskError(f"{row.place}: `{found[0]}` {error}") from error


def _answer(row: Row, column: str | None) -> str | None:
    name = column or ANSWER_COLUMN
    if column and column not in row.fields:
        raise InvalidTaskError(f"{row.place}: no column `{column}`, has {sorted(row.fields)}")
    value = row.fields.get(name)
    if value is None or isinstance(value, str):
        try:
            refuse_half_character(value)
        except ValueError as error:
            raise InvalidTaskError(f"{row.place}: `{name}` {error}") from error
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return str(value)
    raise InvalidTaskError(f"{row.place}: `{name}` must be text or a number, not {type(value).__name__}")


def _tests(row: Row, column: str | None) -> str | None:
    name = column or TESTS_COLUMN
    if column and column not in row.fields:
        raise InvalidTaskError(f"{row.place}: no column `{column}`, has {sorted(row.fields)}")
    value = row.fields.get(name)
    if value is None:
        return None
    try:
        refuse_half_character(value)
        return program_tests(value)
    except ValueError as error:
        raise InvalidTaskError(f"{row.place}: `{name}` {error}") from error
