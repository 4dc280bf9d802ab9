"""The rooms of the three packages, and who imports whom: `python -m tests.repo.rooms` prints them.

Imports are read from the source, so that a lazy one counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "vigor_client": ROOT / "client/vigor_client",
    "vigor_service": ROOT / "service/vigor_service",
    "vigor_trainer": ROOT / "trainer/vigor_trainer",
}
ROOMS = [
    "vigor_client._version",
    "vigor_client.schemas",
    "vigor_client.errors",
    "vigor_client.ranking",
    "vigor_client.chunking",
    "vigor_client.transport",
    "vigor_client.models",
    "vigor_client.weight_format",
    "vigor_client.publishing.transports",
    "vigor_client.publishing",
    "vigor_client.client",
    "vigor_client",
    "vigor_client.integrations",
    "vigor_client.integrations.trl",
    "vigor_client.cli",
    "vigor_service.engine.sequences",
    "vigor_service.engine.ops",
    "vigor_service.engine.ops.kernels",
    "vigor_service.engine.batching",
    "vigor_service.engine.memory",
    "vigor_service.engine.rules",
    "vigor_service.engine.model",
    "vigor_service.engine.norms",
    "vigor_service.engine.attribution",
    "vigor_service.engine.loading",
    "vigor_service.engine.interface",
    "vigor_service.engine.model_weights",
    "vigor_service.engine.engine",
    "vigor_service.engine.sharding",
    "vigor_service.errors",
    "vigor_service.observability",
    "vigor_service.threads",
    "vigor_service.http",
    "vigor_service.settings",
    "vigor_service.unknown_names",
    "vigor_service.weights.storage",
    "vigor_service.weights",
    "vigor_service.scheduling",
    "vigor_service.weights.verification",
    "vigor_service.scoring",
    "vigor_service.weights.updates",
    "vigor_service.weights.sources",
    "vigor_service.sample_groups",
    "vigor_service.compat",
    "vigor_service.model_loading",
    "vigor_service.cluster",
    "vigor_service.serving",
    "vigor_service.runtime",
    "vigor_service.routes",
    "vigor_service.app",
    "vigor_service.server",
    "vigor_service.__main__",
    "vigor_trainer.errors",
    "vigor_trainer.flags",
    "vigor_trainer.monitoring",
    "vigor_trainer.reports",
    "vigor_trainer.resume",
    "vigor_trainer.weights",
    "vigor_trainer.building",
    "vigor_trainer.connection",
    "vigor_trainer.data",
    "vigor_trainer.recipes",
    "vigor_trainer.config",
    "vigor_trainer.description",
    "vigor_trainer.rewards",
    "vigor_trainer.collapse_callback",
    "vigor_trainer.evaluation",
    "vigor_trainer.audit",
    "vigor_trainer.trainer",
    "vigor_trainer.train",
    "vigor_trainer.__main__",
]
"""Low to high: a module imports from its own room and from lower ones, whenever it does so."""


@dataclass(frozen=True)
class Import:
    """One import: of ``module``, and of ``name`` from it, if any."""

    importer: str
    module: str
    name: str | None
    at_import_time: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer} imports {self.module}" + (f".{self.name}" if self.name else "")


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the three packages."""
    found: dict[str, Path] = {}
    for directory in PACKAGES.values():
        for path in directory.rglob("*.py"):
            parts = path.relative_to(directory.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    """Every import of a module, with submodules told from names."""
    return tuple(_walk(ast.parse(modules()[module].read_text()), module, at_import_time=True))


def _walk(node: ast.AST, module: str, *, at_import_time: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, None, at_import_time)
        elif isinstance(child, ast.ImportFrom):
            assert child.module, f"{module} has a relative import"
            assert child.level == 0, f"{module} has a relative import"
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                source, name = (submodule, None) if submodule in modules() else (child.module, alias.name)
                yield Import(module, source, name, at_import_time)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _only_for_types(child)
            yield from _walk(child, module, at_import_time=at_import_time and not deferred)


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module: str) -> str:
    """The longest name of a room that the module is, or lies in."""
    found = [name for name in ROOMS if f"{module}.".startswith(f"{name}.")]
    assert found, f"{module} lies in no room"
    return max(found, key=len)


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def inner_imports() -> list[Import]:
    """Every import of one module of the packages by another."""
    return [found for name in modules() for found in imports_of(name) if found.module in modules()]


def upward_imports() -> list[Import]:
    """Those that lead to a higher room."""
    return [found for found in inner_imports() if ROOMS.index(room(found.module)) > ROOMS.index(room(found.importer))]


def main() -> None:
    """Print each room with its number of modules and lines, low to high, and how many imports lead upwards."""
    for name in ROOMS:
        inside = [module for module in modules() if module == name or (not is_package(module) and room(module) == name)]
        num_lines = sum(len(modules()[module].read_text().splitlines()) for module in inside)
        print(f"{name:45} {len(inside):3} modules {num_lines:6} lines")
    inner, upward = inner_imports(), upward_imports()
    print(
        f"{len(ROOMS)} rooms, {len(modules())} modules, {len(inner)} imports between them, {len(upward)} of them upward"
    )


if __name__ == "__main__":
    main()
