"""The table of memory and storage by model size: arithmetic on measured models, which the manifests have room for."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

import pytest

from benchmarks.contestants import ENGINE
from benchmarks.report import RESULTS, Table, read_report
from tests.k8s.rendering import ROOT, container, needs_kubectl, num_bytes, pod, render, the
from tests.k8s.settings import environment
from vigor_service.settings import Settings

PAGE = (ROOT / "docs/operations/operating.md").read_text()
EXAMPLE_POD = (ROOT / "k8s/overlays/example/pod.yaml").read_text()
GIB = 1 << 30
BYTES_PER_PARAMETER = 2
PROCESS_BYTES = 4 * GIB
EMBEDDED_AND_KERNELS_BYTES = 2 * GIB
MEASURED = {
    table.name.removeprefix("qwen2.5-").upper(): table for table in read_report(RESULTS / "engine_gpu.json").tables
}
OF_THE_OVERLAYS = "1.5B"


def noted(table: Table, pattern: str) -> str:
    (found,) = re.findall(pattern, "\n".join(table.notes))
    return found


def weights_gib(model: str) -> Fraction:
    parameters = 10**6 * int(noted(MEASURED[model], r"(\d+) M parameters"))
    return Fraction(BYTES_PER_PARAMETER * parameters, GIB)


def formula(size: str) -> tuple[int, Fraction]:
    """Return how often a size holds the weights, and the GiB beside them, as the page has it."""
    (text,) = re.findall(rf"^\| {size} \| ([^|]+) \|", PAGE, re.MULTILINE)
    found = re.fullmatch(r"(?:(\d+) × )?weights(?: \+ ([\d.]+) GiB)?", text)
    assert found, text
    return int(found[1] or 1), Fraction(found[2] or 0)


def needed_gib(size: str, model: str) -> Fraction:
    times, beside = formula(size)
    return times * weights_gib(model) + beside


SIZES = ("GPU memory", "pod memory", "state volume", "cache")


@pytest.mark.parametrize("model", MEASURED)
def test_a_row_is_its_formula(model: str) -> None:
    weights = f"{ceil(10 * weights_gib(model)) / 10:.1f}"
    used = noted(MEASURED[model], r"GPU memory in use at the end: ([\d.]+) GB")
    cells = [model, weights, *(str(ceil(needed_gib(size, model))) for size in SIZES), f"{used} GB"]
    assert f"| {' | '.join(cells)} |\n" in PAGE


def test_every_row_is_a_measured_model() -> None:
    assert re.findall(r"^\| ([\d.]+B) \|", PAGE, re.MULTILINE) == list(MEASURED)


def test_the_least_gpu_memory_is_more_than_the_largest_model_was_seen_to_use() -> None:
    (bounded,) = read_report(RESULTS / "engine_gpu-24gb.json").tables
    used_gb = float(noted(bounded, r"GPU memory in use at the end: ([\d.]+) GB"))
    assert f"in {used_gb:g} GB of a GPU" in PAGE
    assert bounded.name.removeprefix("qwen2.5-").upper() == list(MEASURED)[-1]
    assert used_gb * 1e9 < needed_gib("GPU memory", list(MEASURED)[-1]) * GIB


def test_with_memory_to_spare_the_engine_uses_more_than_the_least() -> None:
    for model, table in MEASURED.items():
        (engine,) = (row for row in table.rows if row["contestant"] == ENGINE)
        assert Fraction(float(engine["peak_mib"] or 0)) / 1024 + weights_gib(model) > needed_gib("GPU memory", model)


@needs_kubectl
def test_pod_memory_beside_the_weights_is_the_sum_that_the_page_gives() -> None:
    (shared,) = (volume for volume in pod(the(render("gpu"), "StatefulSet"))["volumes"] if volume["name"] == "shm")
    held_bytes = Settings.model_fields["max_held_bytes"].default
    parts_bytes = num_bytes(shared["emptyDir"]["sizeLimit"]) + held_bytes + PROCESS_BYTES
    assert formula("pod memory") == (1, Fraction(parts_bytes, GIB))
    assert formula("cache") == (1, Fraction(EMBEDDED_AND_KERNELS_BYTES, GIB))


def too_small(memory: str, storage: str, cache: str, model: str) -> set[str]:
    given = {"pod memory": memory, "state volume": storage, "cache": cache}
    return {size for size, quantity in given.items() if num_bytes(quantity) < needed_gib(size, model) * GIB}


def given_sizes(overlay: str) -> tuple[str, str, str]:
    workload = the(render(overlay), "StatefulSet")
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    (cache,) = (volume["emptyDir"] for volume in pod(workload)["volumes"] if volume["name"] == "cache")
    memory = container(workload)["resources"]["requests"]["memory"]
    return memory, claim["spec"]["resources"]["requests"]["storage"], cache["sizeLimit"]


@needs_kubectl
@pytest.mark.parametrize("overlay", ["gpu", "example"])
def test_the_overlays_have_room_for_their_model(overlay: str) -> None:
    assert f"-{OF_THE_OVERLAYS}-" in environment(render(overlay))["VIGOR_MODEL"]
    assert too_small(*given_sizes(overlay), OF_THE_OVERLAYS) == set()


@needs_kubectl
def test_a_model_that_is_too_large_for_an_overlay_is_seen() -> None:
    assert too_small(*given_sizes("gpu"), "7B") == {"pod memory", "state volume"}


def test_the_example_leads_to_the_table() -> None:
    heading = re.findall(r'operating\.md has a table by model size, "([^"]+)"', EXAMPLE_POD)
    assert heading == ["Memory and storage"]
    assert f"#### {heading[0]}\n" in PAGE
