import asyncio
import json
from collections.abc import Iterable, Iterator
from time import process_time

import pytest
from fastapi import Request
from pydantic import BaseModel, JsonValue, RootModel
from pydantic_core import from_json
from starlette.types import Message

from vigor_client.schemas.scoring import ScoreRequest
from vigor_client.schemas.weights import UpdateRequest
from vigor_service.compat.openrlhf import OpenRLHFRequest
from vigor_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    InvalidRequestError,
    MalformedBodyError,
    PayloadTooLargeError,
    QueueFullError,
    UnsupportedMediaTypeError,
)
from vigor_service.http.request_body import MAX_CONTAINERS, MAX_VALUES, BodyReader, JsonBody, parse_json

LIMIT = 100


def _request(*chunks: bytes, media_type: str = "application/json", ends: str = "complete") -> Request:
    """A request whose body comes in chunks, and then is complete, goes silent, or loses its connection."""
    last: Iterable[Message] = {
        "complete": [{"type": "http.request", "body": b"", "more_body": False}],
        "disconnected": [{"type": "http.disconnect"}],
        "silent": [],
    }[ends]
    messages = [*({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks), *last]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return Request({"type": "http", "headers": [(b"content-type", media_type.encode())]}, receive)


def _reader(*, timeout_seconds: float = 20.0, max_held_bytes: int = 10 * LIMIT) -> BodyReader:
    return BodyReader(max_body_bytes=LIMIT, max_held_bytes=max_held_bytes, timeout_seconds=timeout_seconds)


class Anything(RootModel[JsonValue]):
    """Whatever JSON may be."""


def _receive(request: Request, reader: BodyReader | None = None) -> JsonValue:
    return asyncio.run(JsonBody(request, reader or _reader()).parse(Anything, consequence="no")).root


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_a_body_is_received_whole(media_type: str) -> None:
    assert _receive(_request(b"[1", b",2]", media_type=media_type)) == [1, 2]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (_request(b"1", media_type="text/plain"), UnsupportedMediaTypeError),
        (_request(b"1" * 60, b"1" * 41), PayloadTooLargeError),
        (_request(b"1", ends="disconnected"), ClientGoneError),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused(request_: Request, error: type[Exception]) -> None:
    with pytest.raises(error):
        _receive(request_)


def test_a_body_that_does_not_come_is_given_up() -> None:
    with pytest.raises(DeadlineExceededError):
        _receive(_request(b"1", ends="silent"), _reader(timeout_seconds=0.01))


async def test_all_requests_together_are_bounded_by_what_their_bodies_became_and_give_their_place_back() -> None:
    text = b"[" + b"1," * 40 + b"1]"  # as a list of numbers it takes many times as much

    reader = _reader(max_held_bytes=10_000)
    parsed = [JsonBody(_request(text), reader) for _ in range(4)]
    for body in parsed:
        await body.parse(Anything, consequence="no")
    late = JsonBody(_request(text), reader)
    with pytest.raises(QueueFullError, match="retry later") as refused:
        await late.parse(Anything, consequence="no")
    assert refused.value.retry_after_seconds
    for body in (*parsed, late):
        body.release()
    await JsonBody(_request(text), reader).parse(Anything, consequence="no")


def test_a_body_that_alone_takes_more_than_all_may_is_parsed_when_no_other_is_there() -> None:
    assert _receive(_request(b"[1,2]"), _reader(max_held_bytes=1)) == [1, 2]


@pytest.mark.parametrize("text", [b"[" + b"1," * (MAX_VALUES + 1) + b"1]", b"[" * (MAX_CONTAINERS + 1)])
def test_a_body_of_more_values_than_are_parsed_is_refused_before_it_is(text: bytes) -> None:
    reader = BodyReader(max_body_bytes=len(text), max_held_bytes=1 << 30, timeout_seconds=20)
    with pytest.raises(PayloadTooLargeError, match="the limit is"):
        _receive(_request(text), reader)
    reader.close()


def _refused(body: bytes, model: type[BaseModel] = ScoreRequest) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        parse_json(model, body, consequence="nothing was scored")
    return refused.value


def test_what_is_no_json_is_malformed_and_what_is_wrong_is_invalid() -> None:
    with pytest.raises(MalformedBodyError, match=r"Invalid JSON: EOF while parsing .* line 1"):
        parse_json(ScoreRequest, b"{", consequence="nothing was scored")
    refused = _refused(b'{"ties": 1}')
    assert refused.detail == "2 validation errors; nothing was scored"
    assert sorted(error.loc for error in refused.errors) == [["groups"], ["ties"]]


def test_an_object_with_more_names_than_any_has_is_refused_as_a_whole() -> None:
    names = ",".join(f'"x{index}": 1' for index in range(30_000))
    groups = f'{{"groups":[{{"prompt_ids":[1],"completions":[{{{names}}}]}}]}}'
    for body, loc in ((f"{{{names}}}", []), (groups, ["groups", 0, "completions", 0])):
        (whole,) = _refused(body.encode()).errors
        assert (whole.loc, whole.msg.partition(":")[0]) == (loc, "has 30000 names")


def test_the_first_faults_are_listed_and_said_not_to_be_all() -> None:
    group = {"prompt_ids": [1], "completions": [{}] * 512}
    refused = _refused(json.dumps({"groups": [group] * 512}).encode())
    assert refused.detail == "at least 100 validation errors; nothing was scored"
    assert [place.loc for place in refused.errors] == [["groups", 0, "completions", index] for index in range(100)]


def test_as_many_faults_as_are_listed_are_said_to_be_all_of_them() -> None:
    group = {"prompt_ids": [1], "completions": [[1], *[{}] * 100, [1]]}
    assert _refused(json.dumps({"groups": [group]}).encode()).detail.startswith("at least 100 validation errors")
    group["completions"] = [[1], *[{}] * 99, [1]]
    assert _refused(json.dumps({"groups": [group]}).encode()).detail == "99 validation errors; nothing was scored"


def _wrong_lists() -> Iterator[tuple[type[BaseModel], dict[str, object]]]:
    """Of each list of objects that a body may have, one with nothing but wrong ones."""
    one = {"prompt_ids": [1], "completions": [[1]]}
    yield ScoreRequest, {"groups": [{}] * 512}
    yield ScoreRequest, {"groups": [{**one, "completions": [{}] * 512}] * 512}
    yield ScoreRequest, {"groups": [{"messages": [{}] * 4096, "completions": [[1]]}] * 20}
    yield ScoreRequest, {"groups": [{"messages": [{"role": 1, "content": [{"type": "text"}] * 50_000}]}]}
    yield ScoreRequest, {"groups": [{**one, "prompt_ids": ["x"] * 1_000_000}]}
    yield ScoreRequest, {"groups": [{}] * 1_000_000}
    yield UpdateRequest, {"weight_version": 1, "files": [{}] * 4096}
    yield OpenRLHFRequest, {"query": [1] * 512, "prompts": [1] * 512}


@pytest.mark.processor_time
@pytest.mark.parametrize(("model", "body"), list(_wrong_lists()))
def test_a_refused_body_costs_a_bounded_number_of_faults(model: type[BaseModel], body: dict[str, object]) -> None:
    text = json.dumps(body).encode()
    began = process_time()
    from_json(text)
    parsing_seconds = process_time() - began
    began = process_time()
    assert _refused(text, model).errors
    assert process_time() - began < 1 + 5 * parsing_seconds


def test_a_wrong_id_far_within_a_long_list_is_named_by_its_position() -> None:
    body = {"groups": [{"prompt_ids": [1] * 300_000 + ["x"], "completions": [[1]]}]}
    (place,) = _refused(json.dumps(body).encode()).errors
    assert place.loc == ["groups", 0, "prompt_ids"]
    assert place.msg == "item 300000: is 'x'; give a whole number"


def test_a_place_named_by_the_caller_is_cut() -> None:
    refused = _refused(b'{"groups": [], "' + b"x" * 10_000 + b'": 1}')
    assert max(len(str(error.loc)) for error in refused.errors) < 200


def test_a_refusal_holds_nothing_of_what_was_parsed() -> None:
    refused = _refused(json.dumps({"groups": [[1] * 1000]}).encode())
    assert refused.__cause__ is refused.__context__ is None


def test_what_a_template_is_given_is_kept_to_the_last_list() -> None:
    tools = [{"name": "add", "parameters": {"required": ["a", ["b", {"c": [1]}]]}}]
    message = {"role": "user", "content": None, "tool_calls": [{"arguments": {"a": [1, [2]]}}]}
    body = {"groups": [{"messages": [message], "tools": tools, "completions": [[1]]}]}
    (group,) = parse_json(ScoreRequest, json.dumps(body).encode(), consequence="nothing was scored").groups
    assert group.tools == tools
    assert group.messages is not None
    assert group.messages[0].for_template() == {"role": "user", "tool_calls": message["tool_calls"]}
