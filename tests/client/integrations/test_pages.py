"""The pages of the adapters say what is there: names, arguments and settings exist, Python is Python."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from vigor_client.integrations import slime, verl
from vigor_client.integrations.trl import reward as trl
from vigor_client.integrations.trl.metrics import METRICS, PREFIX, SCORE_METRICS
from vigor_client.integrations.trl.round import MAX_WAITING_SAMPLES
from vigor_client.integrations.trl.trl_shape import SUPPORTED_TRL, TESTED_TRL

DOCS = Path(__file__).parents[3] / "docs" / "integrations"
PAGES = sorted(DOCS.glob("*.md"))


def python_of(page: Path) -> list[ast.Module]:
    return [
        ast.parse(source)
        for source in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


def ours(module: ast.Module) -> dict[str, Any]:
    """What a block imports of this project, by the name it has there."""
    imports = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in imports
        if node.module and node.module.startswith("vigor_")
        for alias in node.names
    }


def test_every_adapter_has_a_page_that_is_linked() -> None:
    linked = re.findall(r"\]\(docs/integrations/([a-z-]+)\.md\)", (DOCS.parents[1] / "README.md").read_text())
    assert sorted(linked) == [page.stem for page in PAGES] == ["nemo-rl", "openrlhf", "slime", "trl", "verl"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_call_what_exists_with_arguments_that_exist(page: Path) -> None:
    for module in python_of(page):
        known = ours(module)
        calls = [node for node in ast.walk(module) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id in known:
                keywords = {keyword.arg or "": None for keyword in call.keywords}
                inspect.signature(known[call.func.id]).bind(*call.args, **keywords)


def test_trl_imports_what_the_example_imports_of_it() -> None:
    [example, _] = python_of(DOCS / "trl.md")
    imported = {node.module for node in ast.walk(example) if isinstance(node, ast.ImportFrom)}
    assert {"trl", "transformers", "datasets"} <= imported
    for node in ast.walk(example):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)


def test_every_argument_of_the_reward_function_is_described() -> None:
    rows = re.findall(r"^\| (`[^|/]+) \|", (DOCS / "trl.md").read_text(), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    arguments = set(inspect.signature(trl.VigorReward).parameters) - {"url", "processing_class", "processes"}
    assert described == arguments


@pytest.mark.parametrize(
    ("page", "metrics"),
    [(DOCS / "trl.md", SCORE_METRICS), (DOCS.parent / "trainer.md", METRICS)],
    ids=["trl", "trainer"],
)
def test_the_metrics_on_the_pages_are_those_that_are_logged(page: Path, metrics: dict[str, str]) -> None:
    rows = "".join(f"| `{PREFIX}{name}` | {meaning} |\n" for name, meaning in metrics.items())
    assert f"\n\n| metric | meaning |\n|---|---|\n{rows}\n" in page.read_text()


def test_the_pages_name_the_supported_versions_of_trl() -> None:
    for page in (DOCS / "trl.md", DOCS.parent / "trainer.md"):
        assert f"`trl{SUPPORTED_TRL}`" in page.read_text()
    assert f"tested with TRL {TESTED_TRL}" in (DOCS / "trl.md").read_text()


def test_numbers_and_paths_on_the_pages_are_those_of_the_code() -> None:
    assert f"at most {MAX_WAITING_SAMPLES} completions" in (DOCS / "trl.md").read_text()
    path = f"{slime.__name__}.{slime.vigor_group_reward.__name__}"
    assert f"--custom-rm-path {path}" in (DOCS / "slime.md").read_text()
    keys = verl._reward(None, None)["reward_extra_info"]  # pyright: ignore[reportPrivateUsage] - what verl logs
    assert all(f"`{key}`" in (DOCS / "verl.md").read_text() for key in keys)
