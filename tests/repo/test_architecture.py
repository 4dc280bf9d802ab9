"""Who may import whom. The rules are read from the source, so that a lazy import counts too."""

import ast
import re
import sys
from graphlib import TopologicalSorter

import pytest

import vigor_client
from tests.repo.import_effects import import_effects
from tests.repo.rooms import (
    PACKAGES,
    ROOMS,
    ROOT,
    Import,
    imports_of,
    inner_imports,
    is_package,
    modules,
    upward_imports,
)

OUTSIDE = {"tests", "benchmarks", "examples"}
WEB = {"fastapi", "starlette", "uvicorn"}
HTTP_LAYER = ("__main__", "app", "http", "routes", "server")
MAX_MODULES_OF_A_ROOM = 12
FROM_THE_CLIENT = ("schemas", "errors", "ranking", "weight_format", "models")
"""What both ends share: all that the service takes from the client."""
IMPORT_EFFECTS = {
    # transformers finds implementations by name in its own tables
    "vigor_service.engine.model.experts": ["ALL_EXPERTS_FUNCTIONS.register"],
    "vigor_service.engine.model.packed_attention": [
        "AttentionInterface.register",
        "AttentionMaskInterface.register",
    ],
    # oneDNN reads the size of its cache once, at the first product
    "vigor_service.engine.ops.gemm": ["os.environ.setdefault"],
}
"""What importing a module does beside defining names, by module: nothing else does anything."""


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


def test_a_module_imports_from_its_own_room_and_from_lower_ones() -> None:
    assert inner_imports()
    refuse(upward_imports())


def test_no_modules_import_each_other_in_a_circle() -> None:
    sorter = TopologicalSorter[str]()
    for found in inner_imports():
        sorter.add(found.importer, found.module)
    sorter.prepare()  # raises CycleError


def test_importing_a_module_does_nothing_but_what_is_listed() -> None:
    found = {name: import_effects(path.read_text()) for name, path in modules().items()}
    calls = {name: [effect.partition("(")[0] for effect in effects] for name, effects in found.items() if effects}
    assert calls == IMPORT_EFFECTS


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import os\nos.environ['A'] = 'b'",
        "import json\njson.dumps = None",
        "for _ in range(3):\n    pass",
        "try:\n    start()\nexcept OSError:\n    pass",
        "try:\n    import fast\nexcept ImportError:\n    warn()",
        "if True:\n    start()",
        "x = 1\nx += 1",
    ],
)
def test_what_a_module_does_at_import_is_seen(source: str) -> None:
    assert import_effects(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring."""\nX = compute()',
        "if TYPE_CHECKING:\n    start()",
        "if __name__ == '__main__':\n    main()",
        "def f():\n    g()",
        "class A:\n    x: int = 1",
    ],
)
def test_definitions_are_no_effect(source: str) -> None:
    assert not import_effects(source)


def test_every_room_says_what_it_is_for_and_has_few_modules() -> None:
    for name in filter(is_package, modules()):
        assert ast.get_docstring(ast.parse(modules()[name].read_text())), f"{name} does not say what it is for"
        inside = [module for module in modules() if module.rpartition(".")[0] == name and not is_package(module)]
        assert len(inside) <= MAX_MODULES_OF_A_ROOM, f"{name} has {len(inside)} modules"


def test_the_readmes_tree_and_the_picture_name_every_room() -> None:
    tree, picture = (ROOT / "README.md").read_text(), (ROOT / "docs/architecture.md").read_text()
    for name in ROOMS:
        place = modules()[name].parent if is_package(name) else modules()[name]
        shown = f"{place.name}/" if is_package(name) else place.name
        assert shown in tree, f"the README's tree does not name {place.relative_to(ROOT)}"
    assert re.findall(r"^\| `(vigor_\S+)` \|", picture, re.MULTILINE) == ROOMS


def test_the_picture_names_what_is_in_the_files_that_it_links() -> None:
    named = re.findall(r"\]\(\.\./(\S+\.py)\) `([\w.]+)`", (ROOT / "docs/architecture.md").read_text())
    assert len(named) > 10
    for file, member in named:
        text = (ROOT / file).read_text()
        for name in member.split("."):
            assert re.search(rf"^ *(?:class|def|async def) {name}\b|^{name}\b", text, re.MULTILINE), (file, member)


def test_the_service_takes_the_contract_from_the_client_and_nothing_else() -> None:
    shared = {f"vigor_client.{name}" for name in FROM_THE_CLIENT}
    taken = [found for found in imports_under("vigor_service") if found.top == "vigor_client"]
    assert taken
    refuse([found for found in taken if not _is_in(found.module, shared)])


def test_the_trainer_uses_the_clients_public_api() -> None:
    public = {("vigor_client", name) for name in vigor_client.__all__}
    in_the_open = {
        f"vigor_client.{name}"
        for name in (
            *("schemas", "models", "cli.jsonl_input", "transport.key_file", "integrations.trl"),
            *("publishing.adapted_model", "publishing.tensor_names"),  # shared with TRL's own trainers
        )
    }
    refuse(
        [
            found
            for found in imports_under("vigor_trainer")
            if found.top == "vigor_client"
            and not _is_in(found.module, in_the_open)
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
        ("vigor_service.engine.sharding.streaming", "vigor_client.weight_format.checkpoint_files"),
        ("vigor_service.engine.sharding.streaming", "vigor_client.errors"),
        # what an update does to a tensor: a rank does its part of it
        ("vigor_service.engine.sharding.streaming", "vigor_client.weight_format.writes"),
        ("vigor_service.engine.sharding.weights", "vigor_client.weight_format.writes"),
        ("vigor_service.engine.sharding.weights", "vigor_client.weight_format.delta"),
    }
    refuse([found for found in engine if found.top in banned])
    refuse([found for found in engine if found.top == "vigor_service" and ".engine" not in found.module])
    refuse([found for found in engine if found.top == "vigor_client" and (found.importer, found.module) not in shared])


def test_other_rooms_reach_the_engine_by_its_interface_and_sequences_alone() -> None:
    seen = {"vigor_service.engine.interface", "vigor_service.engine.sequences"}
    others = [
        name
        for name in modules()
        if not name.startswith("vigor_service.engine")
        and name not in ("vigor_service.__main__", "vigor_service.model_loading")
    ]
    taken = [found for name in others for found in imports_of(name) if found.module.startswith("vigor_service.engine.")]
    assert taken
    refuse([found for found in taken if found.module not in seen])


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
    known = {f"vigor_service.http.{name}" for name in ("authentication", "idempotency", "problems")}
    taken = [found for name in inner for found in imports_of(name) if _is_in(found.module, layer)]
    refuse([found for found in taken if found.module not in known])  # which know nothing of requests


def test_the_application_and_its_routes_import_no_torch() -> None:
    refuse([found for found in imports_under("vigor_service.app", "vigor_service.routes") if found.top == "torch"])


def test_the_reference_knows_nothing_of_what_it_checks() -> None:
    reached = {"vigor_service.engine.norms.reference"}
    while (
        more := {found.module for name in reached for found in imports_of(name) if found.module in modules()} - reached
    ):
        reached |= more
    assert "vigor_service.engine.sequences" in reached
    assert not {name for name in reached if name == "vigor_service.engine.norms.fast" or ".rules" in name}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_imports_tests_benchmarks_or_examples(package: str) -> None:
    refuse([found for found in imports_under(package) if found.top in OUTSIDE])


def _is_in(module: str, layer: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in layer)
