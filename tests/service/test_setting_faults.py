import pytest
from pydantic import ValidationError

from vigor_service.setting_faults import describe_fault
from vigor_service.settings import Settings


def _lines(**values: str) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(values)
    return [describe_fault(fault) for fault in refused.value.errors()]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("port", "http", "'http' is not a whole number"),
        ("port", "1.5", "'1.5' is not a whole number"),
        ("port", "-1", "'-1' is below the minimum of 0"),
        ("port", "70000", "'70000' is above the maximum of 65535"),
        ("max_body_bytes", "0", "'0' is not above 0"),
        ("drain_seconds", "soon", "'soon' is not a number"),
        ("allow_broadcast", "perhaps", "'perhaps' is neither true nor false"),
        ("log_format", "xml", "'xml' is not one of 'text' or 'json'"),
        ("max_batch_tokens", "many", "'many' is neither auto nor a whole number above 0"),
    ],
)
def test_a_value_that_cannot_be_used_gets_one_sentence_that_names_flag_and_variable(
    name: str, value: str, sentence: str
) -> None:
    assert _lines(**{name: value}) == [f"--{name.replace('_', '-')} (VIGOR_{name.upper()}): {sentence}"]


def test_a_value_of_many_digits_is_cut_short() -> None:
    assert _lines(port="9" * 5000) == [f"--port (VIGOR_PORT): '{'9' * 100}' has too many digits"]


def test_every_fault_is_a_line_of_its_own() -> None:
    assert _lines(port="http", dtype="int8") == [
        "--port (VIGOR_PORT): 'http' is not a whole number",
        "--dtype (VIGOR_DTYPE): 'int8' is not one of 'auto', 'float32', 'bfloat16' or 'float16'",
    ]


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("value", ["?", "-1", "1e400", "(", "9" * 5000])
def test_no_setting_answers_in_the_words_of_pydantic(name: str, value: str) -> None:
    try:
        Settings.model_validate({"allow_anonymous": False, name: value})
    except ValidationError as refused:
        for line in map(describe_fault, refused.errors()):
            assert "nput should" not in line
            assert "Value error" not in line


def test_a_key_is_never_shown() -> None:
    lines = _lines(score_key="s3cret key", port="http")
    assert lines
    assert "s3cret" not in "".join(lines)
