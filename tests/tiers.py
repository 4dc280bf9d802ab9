"""Tells unit tests from integration tests: `make test-unit` leaves out what is marked `integration` here.

A test is one of integration if it is in one of the directories below, if its module imports something that starts
processes (itself, or through a helper or a conftest.py under tests/), or if it is in a module that takes a minute.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DIRECTORIES = {"benchmarks", "fuzz", "image", "inspector", "integration", "monitoring", "sweep"}
STARTS_PROCESSES = {"multiprocessing", "subprocess", "torch.multiprocessing"}
LONG_MODULES = {
    "engine/norms/test_embedded_norms.py",  # the real weights of the embedded model
    "engine/norms/test_model_table.py",  # every family in every layout
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
        or any(starts_processes(file) for file in (module, *conftests) if file.exists())
    )


@cache
def starts_processes(module: Path) -> bool:
    """Whether a module, or one under tests/ that it imports, imports what starts processes."""
    imported = set(_imports(module))
    helpers = (TESTS.parent.joinpath(*name.split(".")).with_suffix(".py") for name in imported if name[:6] == "tests.")
    return bool(imported & STARTS_PROCESSES) or any(starts_processes(helper) for helper in helpers if helper.is_file())


def _imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
