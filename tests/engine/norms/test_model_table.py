"""docs/models.md says what the engine does with each family."""

from __future__ import annotations

import pytest

from tests.support.model_table import PAGE, table, written


@pytest.mark.slow
def test_the_table_of_models_is_what_the_engine_does() -> None:
    assert written(PAGE.read_text()) == table(), "run python -m tests.support.model_table"
