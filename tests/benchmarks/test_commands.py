"""Every benchmark runs, on a tiny model, and its result can be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import (
    deltas,
    endurance,
    engine,
    front,
    growth,
    long_sequences,
    metrics_cost,
    overlap,
    scaling,
    serving,
    signals,
    weights,
)
from benchmarks.contestants import CONTESTANTS, ENGINE, IDEAL, PUBLISHED
from benchmarks.plots import PLOTS, digest
from benchmarks.publish import PLACE, main
from tests.support.ray_service import needs_ray

PAGE = """
<!-- engine_try: tiny-untied,3,6,4,9 -->
<!-- end -->
and
<!-- growth_try: size of the model -->
old
<!-- end -->
<!-- growth_try: plot -->
<!-- end -->
<!-- engine_elsewhere: plot -->
<!-- end -->
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.mark.slow
def test_the_engine_is_compared(results: Path) -> None:
    workload = "tiny-untied,3,6,4,9"
    arguments = ["--workload", workload, "--repeats", "2", "--settle-seconds", "0"]
    report = engine.main([*arguments, "--out", str(results / "engine_try")])
    rows = {row["contestant"]: row for row in report.table(workload).rows}
    assert tuple(rows) == CONTESTANTS
    for name in (name for name in CONTESTANTS if "Opacus" not in name):
        assert rows[name]["difference"] == pytest.approx(0, abs=1e-4), name
    assert rows[ENGINE]["times_engine"] == 1.0
    assert "on a GPU: not measured, this was run on a CPU" in report.notes


@pytest.mark.slow
def test_a_quick_look_has_one_round_of_the_loops_and_the_engine() -> None:
    report = engine.main(["--quick", "--workload", "tiny-untied,3,6,4,9"])
    (table,) = report.tables
    assert [row["contestant"] for row in table.rows] == [PUBLISHED, IDEAL, ENGINE]
    assert any("1 rounds" in note for note in table.notes)


@pytest.mark.slow
def test_the_suite_for_a_gpu_has_the_loop_beside_few_groups_alone() -> None:
    few, many = "tiny-untied,3,6,4,9,float32,2", "tiny-untied,3,6,4,9,float32,9"
    report = engine.main(["--suite", "gpu", "--device", "cpu", "--workload", few, "--workload", many])
    names = {table.name: [row["contestant"] for row in table.rows] for table in report.tables}
    assert names == {few: [PUBLISHED, ENGINE], many: [ENGINE]}
    assert any("9 groups: 6 prompt tokens" in note for note in report.table(many).notes)


def test_the_suite_for_a_gpu_is_refused_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.main(["--device", "cpu", "--suite", "gpu"])
    assert "--suite gpu takes days on cpu; give it a small --workload" in capsys.readouterr().err


def test_a_bound_for_a_gpus_memory_is_refused_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.main(["--device", "cpu", "--gpu-gib", "21.5"])
    assert "--gpu-gib bounds the memory of a GPU, and this is to run on cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_growth_has_a_row_for_each_point(results: Path) -> None:
    sizes = "--groups 2 --lengths 8 --models tiny --completions 2 --length 8 --prompt-tokens 6 --repeats 1"
    arguments = ["--model", "tiny", *sizes.split(), "--settle-seconds", "0"]
    report = growth.main([*arguments, "--out", str(results / "growth_try")])
    assert [[row["x"] for row in table.rows[:2]] for table in report.tables[:2]] == [[2], [8]]
    assert all(row["ratio"] for table in report.tables for row in table.rows)


@pytest.mark.slow
def test_a_long_sequence_is_scored(results: Path) -> None:
    arguments = ["--model", "tiny", "--layers", "1", "--lengths", "300", "--prompt-tokens", "20"]
    report = long_sequences.main([*arguments, "--out", str(results / "long-sequences_try")])
    (row,) = report.table("one sequence").rows
    assert (row["tokens"], row["loss_tokens"]) == (300, 280)
    assert row["grad_norm"]
    assert row["once_seconds"]
    assert row["twice_seconds"]


@pytest.mark.slow
def test_a_length_above_the_limit_is_scored_with_checkpoints_only() -> None:
    arguments = ["--model", "tiny", "--layers", "1", "--lengths", "100,300", "--prompt-tokens", "20"]
    report = long_sequences.main([*arguments, "--once-up-to", "100"])
    assert [row["once_seconds"] is None for row in report.table("one sequence").rows] == [False, True]


@pytest.mark.slow
def test_endurance_samples_both_paths(results: Path) -> None:
    arguments = ["--model", "tiny", "--requests", "20", "--warm", "10", "--every", "5"]
    report = endurance.main([*arguments, "--out", str(results / "endurance_try")])
    assert [row["path"] for row in report.table("resident memory").rows] == ["engine in process", "service over HTTP"]
    assert [row["requests"] for row in report.table("samples").rows] == [5, 10, 15, 20]


@pytest.mark.slow
def test_full_updates_are_compared_with_a_bare_copy(results: Path) -> None:
    arguments = ["--model", "tiny", "--rounds", "1", "--pause-seconds", "0"]
    report = weights.main([*arguments, "--out", str(results / "weights_try")])
    rounds = report.table("rounds").rows
    assert [row["round"] for row in rounds] == [1, "median"]
    (scored,) = report.table("while scoring").rows
    for row in (*rounds, scored):
        assert row["ratio"]
        assert row["healthz_p99_ms"]
    assert scored["longest_score_seconds"]


@pytest.mark.slow
def test_steps_are_published_as_deltas_with_the_trainers_digest(results: Path) -> None:
    report = deltas.main(["--model", "tiny", "--steps", "3", "--out", str(results / "deltas_try")])
    rows = report.table("steps").rows
    assert [row["encoding"] for row in rows] == ["full", "delta", "delta"]
    assert [row["digest"] for row in rows] == ["equal"] * 3
    assert all(row["changed"] for row in rows)


@pytest.mark.slow  # a real trainer
def test_the_time_that_a_score_waits_is_reported(results: Path) -> None:
    arguments = ["--model", "tiny", "--lengths", "4", "--steps", "3"]
    report = overlap.main([*arguments, "--out", str(results / "overlap_try")])
    (row,) = report.table("rounds").rows
    assert (row["tokens"], row["rounds"]) == (4, 2)
    assert row["generate_seconds"]
    assert row["publish_seconds"]
    assert row["wait_seconds"] is not None


@pytest.mark.slow
def test_the_service_is_put_under_load(results: Path) -> None:
    arguments = ["--model", "tiny", "--rounds", "1", "--groups", "16", "--huge", "16", "--seconds", "1"]
    report = serving.main([*arguments, "--out", str(results / "serving_try")])
    assert report.table("throughput").rows[0]["ratio"]
    assert report.table("fairness").rows[0]["huge_seconds"]
    (row,) = report.table("overload").rows
    assert (row["other"], row["without_retry_after"], row["queued"]) == (0, 0, 0)
    assert row["ok"]


@pytest.mark.slow
def test_the_front_is_measured_before_an_engine_of_a_known_rate(results: Path) -> None:
    arguments = ["--batch-tokens", "4096", "--requests", "2", "--seconds", "1"]
    report = front.main([*arguments, "--out", str(results / "front_try")])
    (row,) = report.table("utilization").rows
    assert isinstance(share := row["utilization"], float)
    assert 0 < share < 1.1
    assert [row["sequences"] for row in report.table("liveness").rows] == [0, 2000, 2000]


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_ray
def test_several_engines_are_compared_with_one(results: Path) -> None:
    arguments = ["--rounds", "1", "--groups", "2", "--seconds", "1"]
    report = scaling.main([*arguments, "--out", str(results / "scaling_try")])
    assert [row["engines"] for row in report.table("throughput").rows] == [1, 2]
    assert all(row["requests_per_second"] for row in report.table("front").rows)
    assert all(row["update_seconds"] for row in report.table("fan-out").rows)
    assert all(row["half_mib"] for row in report.table("memory").rows)


def test_what_scores_cost_without_a_gradient_is_reported(results: Path) -> None:
    arguments = ["--workload", "tiny,3,4,3,9", "--device", "cpu", "--rounds", "2"]
    report = signals.main([*arguments, "--out", str(results / "signals_try")])
    (row,) = report.table("one group").rows
    assert row["ratio"]
    assert isinstance(difference := row["difference"], float)
    assert difference < 1e-4


@pytest.mark.slow
def test_what_metrics_cost_is_reported(results: Path) -> None:
    arguments = ["--models", "tiny", "--rounds", "2", "--requests", "2"]
    report = metrics_cost.main([*arguments, "--out", str(results / "metrics-cost_try")])
    assert [row["round"] for row in report.table("tiny").rows] == [1, 2, "median"]
    (row,) = report.table("counting alone").rows
    assert row["calls"]
    assert row["microseconds"]


@pytest.mark.slow
def test_results_are_published(results: Path, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "benchmarks.md").write_text(PAGE)
    main(results, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    compared, grown, plotted, missing = (place["shown"] for place in PLACE.finditer(page))
    assert compared.count("\n| ") == 2 + len(CONTESTANTS)
    assert grown.count("\n| ") == 2 + 1
    assert plotted == "![How time and memory grow](plots/growth_try.svg)\n"
    assert missing == "Not measured: there is no benchmarks/results/engine_elsewhere.json.\n"
    kinds = [kind for kind in PLOTS if (results / f"{kind}_try.json").is_file()]
    assert set(PLOTS) - set(kinds) <= {"overlap", "serving", "endurance", "long-sequences", "metrics-cost"}  # slow
    plots = {kind: tmp_path / "plots" / f"{kind}_try.svg" for kind in kinds}
    for kind, plot in plots.items():
        assert digest(results / f"{kind}_try.json") in plot.read_text()
    before = [plot.read_bytes() for plot in plots.values()]
    main(results, tmp_path)
    assert [plot.read_bytes() for plot in plots.values()] == before
    assert (tmp_path / "benchmarks.md").read_text() == page
