"""Who may import whom. The rules are read from the source, so that a lazy import counts too."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import vigor_client

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "vigor_client": ROOT / "client/vigor_client",
    "vigor_service": ROOT / "service/vigor_service",
    "vigor_trainer": ROOT / "trainer/vigor_trainer",
}
OUTSIDE = {"tests", "benchmarks", "examples"}
WEB = {"fastapi", "starlette", "uvicorn"}
HTTP_LAYER = (
    "__main__", "app", "body", "connections", "hosts", "http_protocol", "middleware", "openapi", "problems", "routes",
    "server",
)  # fmt: skip


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


def imports_under(*prefixes: str) -> list[Import]:
    """Every import of the modules at or below these names."""
    inside = [name for name in modules() if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)]
    assert inside, f"no module is called {prefixes}"
    return [found for name in inside for found in imports_of(name)]


def refuse(offending: list[Import]) -> None:
    assert not offending, "\n".join(map(str, offending))


def test_lazy_imports_are_seen_and_told_from_those_at_import_time() -> None:
    torch = [found for found in imports_of("vigor_client.publishing.tensor_reader") if found.module == "torch"]
    assert torch
    assert not any(found.at_import_time for found in torch)
    assert Import("vigor_client", "vigor_client.client", "VigorClient", True) in imports_of("vigor_client")


def test_the_client_needs_only_httpx_and_pydantic_to_be_imported() -> None:
    allowed = {*sys.stdlib_module_names, "httpx", "pydantic", "vigor_client"}
    refuse([found for found in imports_under("vigor_client") if found.at_import_time and found.top not in allowed])


def test_the_client_never_imports_a_server_or_the_other_packages() -> None:
    banned = {*WEB, "vigor_service", "vigor_trainer"}
    refuse([found for found in imports_under("vigor_client") if found.top in banned])


def test_the_service_takes_the_contract_from_the_client_and_nothing_else() -> None:
    names = (
        "schemas",
        "attribution_schemas",
        "ranking",
        "digest",
        "embedded",
        "changes",
        "delta_index",
        "errors",
        "lora",
        "broadcast_process",
        "wire_types",
        "fault_limit",
        "checkpoints",
        "safetensors_file",
    )
    shared = {f"vigor_client.{name}" for name in names}
    refuse(
        [
            found
            for found in imports_under("vigor_service")
            if found.top == "vigor_client" and found.module not in shared
        ]
    )


def test_the_trainer_uses_the_clients_public_api() -> None:
    public = {("vigor_client", name) for name in vigor_client.__all__}
    modules_in_the_open = {f"vigor_client.{name}" for name in ("schemas", "embedded", "jsonl_input", "key_file")}
    refuse(
        [
            found
            for found in imports_under("vigor_trainer")
            if found.top == "vigor_client"
            and found.module not in modules_in_the_open
            and (found.module, found.name) not in public
        ]
    )


def test_service_and_trainer_never_import_each_other() -> None:
    refuse([found for found in imports_under("vigor_service") if found.top == "vigor_trainer"])
    refuse([found for found in imports_under("vigor_trainer") if found.top == "vigor_service"])


def test_the_engine_knows_no_web_no_schemas_and_no_settings() -> None:
    banned = {*WEB, "pydantic", "pydantic_settings", "httpx", "prometheus_client"}
    engine = imports_under("vigor_service.engine")
    shared = {
        ("vigor_service.engine.loading.loading", "vigor_client.models.embedded"),
        ("vigor_service.engine.engine", "vigor_client.weight_format.lora"),
        # which files of a directory are its checkpoint: one answer at both ends
        ("vigor_service.engine.loading.checkpoint", "vigor_client.weight_format.checkpoint_files"),
        ("vigor_service.engine.loading.checkpoint", "vigor_client.errors"),
    }
    refuse([found for found in engine if found.top in banned])
    refuse([found for found in engine if found.top == "vigor_service" and ".engine" not in found.module])
    refuse([found for found in engine if found.top == "vigor_client" and (found.importer, found.module) not in shared])


def test_triton_is_imported_by_its_kernels_alone_and_they_only_when_a_device_asks() -> None:
    engine = imports_under("vigor_service")
    refuse([found for found in engine if found.top == "triton" and not found.importer.endswith("_triton")])
    kernels = [found for found in engine if found.module.endswith("_triton")]
    assert kernels
    refuse([found for found in kernels if found.at_import_time and not found.importer.endswith("_triton")])


def test_opentelemetry_is_imported_by_the_tracing_alone_and_that_only_when_a_collector_is_named() -> None:
    service = imports_under("vigor_service")
    tracing = "vigor_service.observability.otel"
    refuse([found for found in service if found.top == "opentelemetry" and found.importer != tracing])
    refuse([found for found in service if found.module == tracing and found.at_import_time])


def test_the_embedded_model_is_imported_only_when_it_is_asked_for() -> None:
    refuse(
        [
            found
            for found in imports_of("vigor_service.engine.loading.loading")
            if found.at_import_time and found.top == "vigor_client"
        ]
    )


def test_only_the_http_layer_knows_the_web() -> None:
    layer = {f"vigor_service.{name}" for name in HTTP_LAYER}
    inner = [name for name in modules() if name.startswith("vigor_service.") and not _is_in(name, layer)]
    refuse([found for name in inner for found in imports_of(name) if found.top in WEB])
    refuse(
        [
            found
            for name in inner
            for found in imports_of(name)
            if _is_in(found.module, layer - {"vigor_service.http.problems"})
        ]
    )


def test_the_application_and_its_routes_import_no_torch() -> None:
    refuse([found for found in imports_under("vigor_service.app", "vigor_service.routes") if found.top == "torch"])


def test_the_reference_knows_nothing_of_what_it_checks() -> None:
    reached = {"vigor_service.engine.norms.reference"}
    while (
        more := {found.module for name in reached for found in imports_of(name) if found.module in modules()} - reached
    ):
        reached |= more
    assert "vigor_service.engine.sequences" in reached
    assert not {name for name in reached if "fast_norms" in name or ".rules" in name}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_imports_tests_benchmarks_or_examples(package: str) -> None:
    refuse([found for found in imports_under(package) if found.top in OUTSIDE])


def _is_in(module: str, layer: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in layer)
