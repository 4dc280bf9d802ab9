"""Tells unit tests from integration tests: `make test-unit` leaves out what is marked `integration` here.

A test is one of integration if it is in one of the directories below, if its module imports something that starts
processes or a server (itself, or through a helper or a conftest.py under tests/), or if it is one of the modules below,
which take longest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DIRECTORIES = {"benchmarks", "fuzz", "image", "inspector", "integration", "monitoring", "sweep"}
STARTS_SOMETHING = {
    "http.server",
    "multiprocessing",
    "subprocess",
    "torch.multiprocessing",
    "uvicorn",
    "vigor_trainer.data.sandbox",
}
LONG_MODULES = {
    "engine/norms/test_embedded_norms.py",  # the real weights of the embedded model
    "engine/norms/test_self_check.py",  # a model for each planted fault
    "engine/ops/test_hutchinson.py",  # means over many draws
    "engine/rules/test_large_vocabularies.py",  # loops in float64 over 262,144 tokens
    "engine/norms/test_model_table.py",  # every family in every layout
    "engine/norms/test_signals.py",  # every family, by three ways
    "engine/norms/test_packed_beside.py",  # each sequence in a fresh model of its own
    "engine/model/test_adapter_parameters.py",  # PEFT's adapters on every family
    "trainer/test_trainer.py",  # whole runs of TRL
    "trainer/evaluation/test_during_training.py",  # likewise
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of integration."""
    for item in items:
        if is_integration(item.path):
            item.add_marker("integration")


@cache
def is_integration(module: Path) -> bool:
    """Whether the tests of a module are tests of integration."""
    path = module.relative_to(TESTS)
    conftests = [directory / "conftest.py" for directory in module.parents if directory.is_relative_to(TESTS)]
    return (
        path.parts[0] in DIRECTORIES
        or path.as_posix() in LONG_MODULES
        or any(starts_something(file) for file in (module, *conftests) if file.exists())
    )


@cache
def starts_something(module: Path) -> bool:
    """Whether a module, or one under tests/ that it imports, imports what starts a process or a server."""
    imported = set(_imports(module))
    helpers = (TESTS.parent.joinpath(*name.split(".")).with_suffix(".py") for name in imported if name[:6] == "tests.")
    return bool(imported & STARTS_SOMETHING) or any(starts_something(helper) for helper in helpers if helper.is_file())


def _imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
