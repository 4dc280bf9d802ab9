"""What is wrong with a request, in sentences: the same for arguments, for JSON lines and on the wire."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vigor_client import Completion, Group, InputError, VigorClient
from vigor_client.cli.jsonl_input import JsonlInput
from vigor_client.cli.jsonl_lines import check_lines
from vigor_client.schemas.faults import MAX_SENTENCES, fault_sentences, faults_of
from vigor_client.schemas.nearest_name import did_you_mean, nearest_name
from vigor_client.schemas.scoring import ScoreRequest
from vigor_service.errors import InvalidRequestError
from vigor_service.http.request_body import parse_json

PROMPT = {"prompt": "3 + 4 ="}
SEVEN = {**PROMPT, "completions": [" 7"]}


def said_of(groups: object, **options: Any) -> str:  # noqa: ANN401 - also wrong ones
    """What the client says of a request that it does not send."""
    with VigorClient("http://127.0.0.1:9") as client, pytest.raises(ValueError, match=r".") as raised:
        client.score(groups, **options)  # pyright: ignore[reportArgumentType] - wrong on purpose
    assert type(raised.value) is ValueError
    assert raised.value.__cause__ is raised.value.__context__ is None
    return str(raised.value)


def completions(*given: object) -> list[Mapping[str, object]]:
    return [{**PROMPT, "completions": list(given)}]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (completions(), "group 0, `completions`: is empty; give one or more"),
        (completions("a", "b", {}), "group 0, completion 2: needs `text`, or the token ids in `ids`"),
        (completions({"text": "a", "ids": [1]}), "group 0, completion 0: has `text` and `ids`; give one of them"),
        (
            [SEVEN, {**PROMPT, "completion": ["a"]}],
            "group 1, `completion`: is not a known field; did you mean `completions`?",
        ),
        (completions("a", {"txt": "b"}), "group 0, completion 1, `txt`: is not a known field; did you mean `text`?"),
        ([{**SEVEN, "colour": 1}], "group 0, `colour`: is not a known field"),
        ([PROMPT], "group 0, `completions`: is missing"),
        ([{"completions": ["a"]}], "group 0: has no prompt; give one of `prompt`, `messages` and `prompt_ids`"),
        (
            [{**SEVEN, "messages": [{"role": "user", "content": "a"}]}],
            "group 0: has `prompt` and `messages`; give one of them",
        ),
        (
            completions({"text": "a", "finish_reason": "done"}),
            "group 0, completion 0, `finish_reason`: is 'done'; give 'stop' or 'length'",
        ),
        ("hello", "`groups`: is 'hello'; give a list"),
        (3, "`groups`: is 3; give a list"),
        (None, "`groups`: is null; give a list"),
        ([], "`groups`: is empty; give one or more"),
        (["hello"], "group 0: is 'hello'; give an object with the fields of Group"),
        (completions([1, -1]), "group 0, completion 0, `ids` item 1: is -1; give 0 or more"),
        (completions([1, float("nan")]), "group 0, completion 0, `ids` item 1: is NaN; give a whole number"),
        (completions([1, 1.5]), "group 0, completion 0, `ids` item 1: is 1.5; give a whole number"),
        (completions("a", 3), "group 0, completion 1: is 3; give an object with the fields of Completion"),
        ([{**PROMPT, "completions": "a"}], "group 0, `completions`: is 'a'; give a list"),
        ([{**SEVEN, "prompt": ["a"]}], "group 0, `prompt`: is a list; give text"),
        ([{**SEVEN, "prompt": ""}], "group 0, `prompt`: is empty; give one or more"),
        ([{**SEVEN, "id": "x" * 257}], "group 0, `id`: has 257 characters; give 256 or fewer"),
        (completions(*["a"] * 513), "group 0, `completions`: has 513 items; give 512 or fewer"),
        ([{"messages": [{"content": "a"}], "completions": ["a"]}], "group 0, message 0, `role`: is missing"),
        (
            [{"messages": [{"role": "user", "content": 3}], "completions": ["a"]}],
            "group 0, message 0, `content`: is neither text nor a list of parts; give one of them",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "text"}]}], "completions": ["a"]}],
            "group 0, message 0, `content`: part 0 has no `text`",
        ),
        (
            completions({"text": "a", "finish_reason": "x" * 50}),
            f"group 0, completion 0, `finish_reason`: is '{'x' * 40}…'; give 'stop' or 'length'",
        ),
    ],
)
def test_a_wrong_group_is_one_sentence(groups: object, said: str) -> None:
    assert said_of(groups) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_version": "x"}, "`weight_version`: is 'x'; give a whole number"),
        ({"weight_version": -1}, "`weight_version`: is -1; give 0 or more"),
        ({"weight_version": True}, "`weight_version`: is true; give a whole number"),
        ({"weight_version": 2**200}, "`weight_version`: is a number that is too large; give 9007199254740991 or less"),
        ({"weight_digest": "abc"}, "`weight_digest`: is 'abc'; give text that matches ^xxh3-128:[0-9a-f]{32}$"),
        ({"wait_seconds": float("nan")}, "`wait_seconds`: is NaN; give 600 or less"),
        ({"wait_seconds": "3"}, "`wait_seconds`: is '3'; give a number"),
        ({"ties": None}, "`ties`: is null; give 'average' or 'ordinal'"),
        ({"return_token_ids": "yes"}, "`return_token_ids`: is 'yes'; give true or false"),
        ({"compute": "norm"}, "`compute`: is 'norm'; give a list"),
        ({"compute": ["nrm"]}, "`compute` item 0: is 'nrm'; give 'norm', 'signals' or 'token_logprobs'"),
        ({"compute": object()}, "`compute`: is of type object; give a list"),
    ],
)
def test_a_wrong_argument_is_one_sentence(options: dict[str, Any], said: str) -> None:
    assert said_of([SEVEN], **options) == said


def test_several_faults_are_lines_of_one_error_up_to_a_readable_number() -> None:
    lines = said_of([PROMPT] * 12).splitlines()
    assert lines[:2] == ["group 0, `completions`: is missing", "  group 1, `completions`: is missing"]
    assert (lines[-1], len(lines)) == ("  ... and 2 more", MAX_SENTENCES + 1)


def test_groups_that_are_made_already_are_taken_as_they_are() -> None:
    made = Group(prompt="a", completions=[Completion(text="b")])
    assert said_of([made, {}]).splitlines()[0].startswith("group 1, `completions`")


def test_other_calls_say_it_in_the_same_way() -> None:
    with VigorClient("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match=r"^`num_engines`: is 0; give 1 or more$"):
            client.scale(0)
        with pytest.raises(ValueError, match=r"^`completion`: is missing$"):
            client.attribute({"prompt": "a"})
        with pytest.raises(ValueError, match=r"^`grup`: is not a known field; did you mean `group`\?"):
            client.score_sample({"prompt": "a", "grup": "a", "group_size": 1, "index": 0, "completion": "b"})


def test_a_line_of_a_file_says_file_line_and_all_of_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "completion": ["b"], "id": 3}\n{"prompt": "a", "completions": [[1, NaN]]}\nwhat\n')
    with pytest.raises(InputError) as raised:
        check_lines(JsonlInput("in.jsonl", path))
    first, second, third = str(raised.value).split("\n  ")
    assert first == (
        "in.jsonl:1: `id`: is 3; give text; `completion`: is not a known field; did you mean `completions`?"
    )
    assert second == "in.jsonl:2: completion 0, `ids` item 1: is NaN; give a whole number"
    assert third.startswith("in.jsonl:3: this is not JSON: ")


def test_the_service_says_it_in_the_same_words() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_json(
            ScoreRequest, b'{"groups": [{"prompt": "a", "completion": ["b"]}]}', consequence="nothing was scored"
        )
    (place,) = raised.value.errors
    assert place.loc == ["groups", 0, "completion"]
    assert place.msg == "is not a known field; did you mean `completions`?"


def test_names_are_compared_for_a_few_faults_alone() -> None:
    wrong = {**SEVEN, **{f"prompt{number}": 1 for number in range(50)}}
    with pytest.raises(ValidationError) as raised:
        ScoreRequest.model_validate({"groups": [wrong]})
    asked = [fault for fault in faults_of(raised.value, ScoreRequest) if fault.msg.endswith("did you mean `prompt`?")]
    assert len(asked) == MAX_SENTENCES
    assert fault_sentences(raised.value, ScoreRequest)[-1] == "... and 40 more"


def test_the_nearest_name_is_found_by_what_follows_the_common_prefix() -> None:
    assert nearest_name("--weigth", ["--weight", "--url"]) == "--weight"
    assert nearest_name("--zzz", ["--weight", "--url"]) is None
    assert did_you_mean("VIGOR_MODLE", ["VIGOR_MODEL", "VIGOR_URL"], prefix="VIGOR_") == "; did you mean VIGOR_MODEL?"
    assert did_you_mean("VIGOR_ZZZ", ["VIGOR_MODEL"], prefix="VIGOR_") == ""
