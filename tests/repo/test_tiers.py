"""Unit tests start no process and no server: what does is marked `integration` by what its module imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiers import DIRECTORIES, LONG_MODULES, TESTS, is_integration


@pytest.mark.parametrize("name", sorted(DIRECTORIES | LONG_MODULES))
def test_what_the_tiers_name_is_there(name: str) -> None:
    assert (TESTS / name).exists()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("client/test_ranking.py", False),
        ("engine/rules/test_rules.py", False),
        ("service/scheduling/test_scheduler.py", False),
        ("service/routes/test_scoring.py", True),  # its service is a thread with a socket
        ("repo/test_wheel.py", True),  # imports subprocess
        ("service/test_main.py", True),  # by a helper that imports it
        ("engine/norms/test_embedded_norms.py", True),  # takes a minute
        ("integration/test_partial_updates.py", True),
    ],
)
def test_a_module_is_of_integration_by_its_place_and_its_imports(module: str, expected: bool) -> None:
    assert is_integration(TESTS / module) is expected


def test_this_test_is_selected_as_a_unit_test(request: pytest.FixtureRequest) -> None:
    assert is_integration(Path(__file__)) is (request.node.get_closest_marker("integration") is not None) is False
