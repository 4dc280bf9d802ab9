import pytest
from pydantic import ValidationError

from vigor_service.settings import Settings


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_an_environment_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGOR_MAX_BATCH_TOKENS", "123")
    assert Settings().max_batch_tokens == 123
    assert Settings(max_batch_tokens=7).max_batch_tokens == 7


def test_the_batch_budget_is_measured_unless_a_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().max_batch_tokens == Settings(max_batch_tokens="auto").max_batch_tokens == "auto"
    monkeypatch.setenv("VIGOR_MAX_BATCH_TOKENS", "many")
    with pytest.raises(ValidationError, match="'many' is neither auto nor a whole number above 0"):
        Settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "scorer.example.org"])  # noqa: S104 - what is refused
def test_a_host_that_others_reach_is_refused_by_name_unless_allowed(host: str) -> None:
    with pytest.raises(ValidationError, match=f"--host {host} .* --allow-anonymous"):
        Settings(host=host)
    assert Settings(host=host, allow_anonymous=True).host == host


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"max_batch_tokens": 0},
        {"max_batch_tokens": "-5"},
        {"max_batch_tokens": 1.5},
        {"max_batch_tokens": True},
        {"dtype": "int8"},
        {"drain_seconds": 0},
        {"watchdog_seconds": 0},
        {"log_format": "xml"},
        {"parameters": "("},
        {"norm_probes": 0},
        {"parameters": "last-0-layers"},
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings.model_validate(wrong)
