import re

import pytest
from pydantic import ValidationError

from vigor_service.settings import Settings, fault_lines


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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "http", " is 'http'; give a whole number"),
        ("port", "1.5", " is '1.5'; give a whole number"),
        ("port", "-1", " is '-1'; give 0 or more"),
        ("port", "70000", " is '70000'; give 65535 or less"),
        ("port", "9" * 5000, f" is '{'9' * 40}…'; give a whole number of fewer digits"),
        ("max_body_bytes", "0", " is '0'; give more than 0"),
        ("drain_seconds", "soon", " is 'soon'; give a number"),
        ("allow_broadcast", "perhaps", " is 'perhaps'; give true or false"),
        ("log_format", "xml", " is 'xml'; give 'text' or 'json'"),
        ("max_batch_tokens", "many", ": 'many' is neither auto nor a whole number above 0"),
    ],
)
def test_a_wrong_value_gets_one_line_with_flag_and_variable_and_what_to_give(name: str, value: str, said: str) -> None:
    assert _lines(**{name: value}) == [f"--{name.replace('_', '-')} (VIGOR_{name.upper()}){said}"]


def test_every_fault_is_a_line_of_its_own() -> None:
    assert _lines(port="http", dtype="int8") == [
        "--port (VIGOR_PORT) is 'http'; give a whole number",
        "--dtype (VIGOR_DTYPE) is 'int8'; give 'auto', 'float32', 'bfloat16' or 'float16'",
    ]


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("value", ["?", "-1", "1e400", "(", "9" * 5000])
def test_no_setting_is_refused_in_the_words_of_pydantic(name: str, value: str) -> None:
    try:
        Settings.model_validate({name: value})
    except ValidationError as refused:
        for line in fault_lines(refused):
            assert not re.search("nput should|Value error|parse", line), line


def test_a_key_that_cannot_be_used_is_not_shown() -> None:
    [line] = _lines(score_key="s3cret key")
    assert line.startswith("--score-key (VIGOR_SCORE_KEY): ")
    assert "s3cret" not in line


def _lines(**values: str) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(values)
    return fault_lines(refused.value)
