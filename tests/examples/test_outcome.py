"""What the demo shows of two runs on the console."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from examples.demo.outcome import accuracy_table, examples_table
from tests.trainer.reports.example_runs import write_evaluations, write_run
from vigor_trainer.reports.runs import Run, read_runs


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    greedy = [[True, True], [True, False]]
    ends = {"vigor": [0.9, 0.9], "random": [0.2, 0.2]}
    return read_runs(
        [
            write_evaluations(
                write_run(tmp_path / name, num_steps=1),
                [0.4, 0.4],
                end,
                greedy=greedy,
                finish_reason="length",
                completion="[b]2[/b]\n 3",
            )
            for name, end in ends.items()
        ]
    )


def printed(table: Table) -> str:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table)
    return shown.get()


def test_accuracy_is_shown_for_each_step_with_its_change_and_what_was_truncated(runs: list[Run]) -> None:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(accuracy_table(runs)).splitlines()]
    assert ["sampled, 10 of each of 2 sums", "", ""] in rows
    assert ["4", "90 % [90, 90]", "20 % [20, 20]"] in rows
    assert ["change", "+50 points [+50, +50]", "−20 points [−20, −20]"] in rows
    assert ["truncated at the end", "100 % [100, 100]", "100 % [100, 100]"] in rows
    assert ["greedy, 1 of each of 2 sums", "", ""] in rows
    assert ["4", "50 % [0, 100]", "50 % [0, 100]"] in rows


def test_completions_are_shown_word_for_word_and_truncated_ones_are_marked(runs: list[Run]) -> None:
    held_out = runs[0].held_out
    assert held_out is not None
    shown = printed(examples_table("vigor", held_out))
    assert "[b]2[/b]" in shown
    assert "│  3 " in shown
    assert "(right, truncated)" in shown
