"""Whatever a chat template does, and whatever a prompt says: token ids, or a refusal that says why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import LiveService, live_service
from tests.support.tiny_models import tiny_tokenizer
from vigor_client.schemas.scoring import ScoreRequest
from vigor_service.errors import InvalidRequestError, PayloadTooLargeError, SequenceTooLongError
from vigor_service.http.problems import PROBLEMS
from vigor_service.runtime import LoadedModel
from vigor_service.scoring.encoded import EncodedGroup
from vigor_service.scoring.tokenization import Encoder

REFUSALS = (InvalidRequestError, SequenceTooLongError, PayloadTooLargeError)
MESSAGES = "{% for m in messages %}{{ m.content }}{% endfor %}"
FAILING = {
    "divides by zero": "{{ 1 / (messages | length - 1) }}",
    "divides a float by zero": "{{ 1.5 % 0 }}",
    "overflows": "{{ 2.0 ** 99999 }}",
    "has too large an integer": "{{ (10 ** 5000) | string }}",
    "asks for too much memory": "{{ 'a' * (10 ** 15) }}",
    "makes a list that is too large": "{{ [0] * (10 ** 15) }}",
    "recurses": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recurses over messages": "{% for m in [messages] recursive %}{{ loop([messages]) }}{% endfor %}",
    "takes too long a range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "writes without end": "{% for i in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}",
    "raises by itself": "{{ raise_exception('roles must alternate') }}",
    "raises all that it was given": "{{ raise_exception(messages[0].content * 99999) }}",
    "looks into the interpreter": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "calls what is no function": "{{ messages() }}",
    "reads what is not there": "{{ messages[9].content.text }}",
    "includes a file": "{% include '/etc/passwd' %}",
    "has no end": "{% for m in messages %}",
    "uses a filter that is not there": "{{ messages | nothing }}",
    "adds a number to a text": "{{ messages[0].content + 1 }}",
    "sorts what has no order": "{{ [1, 'a', none] | sort }}",
    "formats wrongly": "{{ '%d' | format('a') }}",
    "changes what it goes through": "{% for m in messages %}{% set _ = messages.append(m) %}{% endfor %}",
    "writes nothing": "",
}
EXPRESSIONS = (
    "messages", "messages[0]", "messages[0].content", "messages[-7].role", "tools", "documents", "nothing", "none",
    "0", "1", "-1", "2.5", "10 ** 3", "10 ** 400", "'a'", "''", "range(9)", "range(999)", "namespace(x=1)",
    "dict(a=1)",
    "messages[0].content | length", "strftime_now('%')", "raise_exception('no')", "bos_token", "loop.index", "joiner",
)  # fmt: skip
OPERATORS = ("+", "-", "*", "/", "//", "%", "~", "==", "<", "in", "and", "is divisibleby", "is")
FILTERS = (
    "length", "tojson", "string", "int", "float", "list", "first", "last", "join", "sort", "sum", "unique", "upper",
    "trim", "batch(2)", "slice(3)", "map('upper')", "map(attribute='role')", "items", "abs", "round", "random",
    "groupby('role')", "dictsort", "xmlattr", "urlize", "wordwrap(0)", "indent(99)", "truncate(0)", "format(1)",
)  # fmt: skip


def _expressions() -> st.SearchStrategy[str]:
    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, st.sampled_from(OPERATORS), inner).map(lambda parts: f"({' '.join(parts)})"),
            st.tuples(inner, st.sampled_from(FILTERS)).map(lambda parts: f"({parts[0]} | {parts[1]})"),
            st.tuples(inner, inner).map(lambda parts: f"{parts[0]}[{parts[1]}]"),
        )

    return st.recursive(st.sampled_from(EXPRESSIONS), larger, max_leaves=4)


def _templates() -> st.SearchStrategy[str]:
    expressions = _expressions()

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two = st.tuples(expressions, inner)
        return st.one_of(
            two.map(lambda parts: f"{{% for m in {parts[0]} %}}{parts[1]}{{% endfor %}}"),
            two.map(lambda parts: f"{{% if {parts[0]} %}}{parts[1]}{{% endif %}}"),
            two.map(lambda parts: f"{{% set x = {parts[0]} %}}{parts[1]}"),
            two.map(lambda parts: f"{{% macro f(a) %}}{parts[1]}{{% endmacro %}}{{{{ f({parts[0]}) }}}}"),
            two.map(lambda parts: f"{{% macro f(a) %}}{parts[1]}{{{{ f(a) }}}}{{% endmacro %}}{{{{ f({parts[0]}) }}}}"),
            st.tuples(inner, inner).map("".join),
        )

    written = expressions.map(lambda text: f"{{{{ {text} }}}}")
    return st.recursive(st.one_of(written, st.just(MESSAGES), st.text(max_size=8)), larger, max_leaves=4)


_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False), st.text(max_size=9)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=6,
)
_CONTENTS = st.one_of(
    st.text(max_size=30),
    st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9)}), max_size=3),
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "x"]), "content": _CONTENTS},
        optional={"tool_calls": _JSON, "name": _JSON},
    ),
    min_size=1,
    max_size=3,
)
_PROMPTS = st.fixed_dictionaries(
    {"messages": _MESSAGES, "add_generation_prompt": st.booleans()},
    optional={
        "tools": st.lists(st.dictionaries(st.text(max_size=9), _JSON, max_size=2), max_size=2),
        "documents": st.lists(st.dictionaries(st.text(max_size=9), _JSON, max_size=2), max_size=2),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["x", "f", "loop", "m", "joiner"]), _JSON, max_size=2),
    },
)


def _encoder(template: str) -> Encoder:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer, vocab_size=320, max_sequence_tokens=200)


def _encode(encoder: Encoder, prompt: dict[str, Any]) -> Sequence[EncodedGroup] | Exception:
    group = {**prompt, "completions": [[1], "a"]}
    try:
        return encoder.encode(ScoreRequest.model_validate_json(json.dumps({"groups": [group]}))).groups
    except REFUSALS as error:
        return error


@settings(max_examples=60, deadline=None)
@given(template=_templates(), prompt=_PROMPTS)
def test_any_template_gives_tokens_or_a_refusal_that_says_why(template: str, prompt: dict[str, Any]) -> None:
    outcome = _encode(_encoder(template), prompt)
    if isinstance(outcome, Exception):
        assert 400 <= PROBLEMS[type(outcome)].status < 500  # pyright: ignore[reportArgumentType] - one of REFUSALS
        assert all(0 < len(error.msg) < 1000 for error in outcome.errors)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        assert outcome[0].sequences[0].prompt_ids


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING)
def test_a_template_that_fails_is_a_refusal_of_the_messages(template: str) -> None:
    outcome = _encode(_encoder(template), {"messages": [{"role": "user", "content": "Hi"}]})
    assert isinstance(outcome, REFUSALS), outcome
    assert all(len(error.msg) < 1000 for error in outcome.errors)


@pytest.fixture(scope="module")
def without_unknown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service whose tokenizer knows digits alone, and has nothing for what it does not know."""
    vocabulary = {**{str(digit): digit for digit in range(10)}, "<end>": 10}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.chat_template = MESSAGES
    with live_service(
        tmp_path_factory.mktemp("staging"), load_model=lambda: LoadedModel(FakeScorer(), tokenizer)
    ) as running:
        yield running


_WORDS = st.one_of(st.text(max_size=6), st.text("0123 \n", max_size=6))


@settings(max_examples=25, deadline=None)
@given(prompt=_WORDS, response=_WORDS)
def test_any_prompt_of_a_trainer_gets_a_reward_or_a_refusal_that_says_why(
    without_unknown: LiveService, prompt: str, response: str
) -> None:
    http = without_unknown.http
    as_text = {"prompt": prompt, "response": response}
    as_messages = {"prompt": [{"role": "user", "content": prompt}], "response": response}
    query = {"query": [prompt + response], "prompts": [prompt]}
    answers = [
        http.post("/slime/reward?group_size=1", json=as_text),
        http.post("/slime/reward?group_size=1", json=as_messages),
        http.post("/openrlhf/get_reward?group_size=1", json=query),
        http.post("/v1/score", json={"groups": [{"prompt": prompt, "completions": [response]}]}),
        http.post("/v1/attribution", json={"prompt": prompt, "completion": response}),
    ]
    for answer in answers:
        assert answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert all(error["msg"] for error in answer.json()["errors"])


@pytest.mark.parametrize("prompt", [" ", "\n \n"])
def test_a_prompt_of_a_trainer_without_a_token_is_refused_by_its_place(
    without_unknown: LiveService, prompt: str, text_log: pytest.LogCaptureFixture
) -> None:
    answer = without_unknown.http.post("/slime/reward?group_size=1", json={"prompt": prompt, "response": "1"})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"loc": ["prompt"], "msg": "has no token"}]
    query = {"query": [f"{prompt}1"], "prompts": [prompt]}
    answer = without_unknown.http.post("/openrlhf/get_reward?group_size=1", json=query)
    assert answer.json()["rewards"] == [-1.0]  # OpenRLHF would swallow a refusal: it is told by a flag, and in the log
    assert answer.json()["extra_logs"]["vigor_failed"] == [1.0]
    assert "sample_without_score error=InvalidRequestError" in text_log.text


def test_messages_that_end_with_the_assistants_turn_are_refused_by_slimes_route_too(
    without_unknown: LiveService,
) -> None:
    body = {"prompt": [{"role": "assistant", "content": "1"}], "response": "2"}
    answer = without_unknown.http.post("/slime/reward?group_size=1", json=body)
    assert answer.status_code == 422
    assert "the last message is the assistant's" in answer.json()["errors"][0]["msg"]
