"""The sentence for a setting whose value cannot be used, in place of pydantic's own words."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import ErrorDetails

_SENTENCES: Mapping[str, str] = {
    "int_parsing": "is not a whole number",
    "int_parsing_size": "has too many digits",
    "float_parsing": "is not a number",
    "bool_parsing": "is neither true nor false",
    "literal_error": "is not one of {expected}",
    "greater_than": "is not above {gt:g}",
    "greater_than_equal": "is below the minimum of {ge:g}",
    "less_than_equal": "is above the maximum of {le:g}",
}
"""What is wrong with a value, by pydantic's type of error. None of them is an error of a key, which is never shown."""

_MAX_SHOWN_CHARACTERS = 100


def describe_fault(fault: ErrorDetails) -> str:
    """Return one line that names the flag and its environment variable, and says what is wrong with the value."""
    names = [str(part) for part in fault["loc"]]
    place = "".join(f"--{name.replace('_', '-')} (VIGOR_{name.upper()}): " for name in names)
    sentence = _SENTENCES.get(fault["type"])
    if sentence is None:  # a check of the settings' own, which words its refusal itself
        return place + fault["msg"].removeprefix("Value error, ")
    return f"{place}{str(fault['input'])[:_MAX_SHOWN_CHARACTERS]!r} {sentence.format(**fault.get('ctx', {}))}"
