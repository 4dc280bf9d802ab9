"""A template that goes on without end is stopped, whatever it loops over, and so is one that writes without end."""

import sys
import threading
from collections.abc import Callable
from time import thread_time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vigor_service.errors import ClientGoneError, PayloadTooLargeError
from vigor_service.scoring.template_limit import TemplateLimitError, within_limits
from vigor_service.threads.work_limit import WorkLimit

NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "nested ranges": NESTED,
    "a macro": "{% macro m(n) %}{% for i in range(99999) %}{{ m(n) if n else '' }}{% endfor %}{% endmacro %}"
    "{% for i in range(99999) %}{{ m(0) }}{% endfor %}",
    "filters": "{% for i in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "tests": "{% for i in range(99999) %}{{ range(99999) | select('odd') | list | length }}{% endfor %}",
    "characters": "{% for i in range(99999) %}{% for c in messages[0] %}{% endfor %}{% endfor %}",
    "a namespace": "{% set n = namespace(i=0) %}"
    + NESTED.replace("{% endfor %}", "{% set n.i = n.i + 1 %}{% endfor %}"),
}


def _render(template: str, **values: object) -> Callable[[], str]:
    compiled = ImmutableSandboxedEnvironment().from_string(template)
    return lambda: compiled.render(messages=["ab" * 5000], **values)


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_stopped(template: str) -> None:
    with pytest.raises(TemplateLimitError, match="more than 50000 steps"):
        within_limits(_render(template), max_characters=1 << 20, max_steps=50_000)


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_at_the_limit_that_the_service_has_it_is_stopped_after_seconds(template: str) -> None:
    began = thread_time()
    with pytest.raises(TemplateLimitError):
        within_limits(_render(template), max_characters=1 << 20, max_steps=200_000)
    assert thread_time() - began < 5.0  # a fifth of the service's steps, on a slow machine


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{{ messages[0] }}{% endfor %}",
        "{% macro m() %}{{ messages[0] }}{% endmacro %}{% for i in range(99999) %}{{ m() }}{% endfor %}",
        "{% block b %}{% for i in range(99999) %}{{ messages[0] }}{% endfor %}{% endblock %}",
    ],
)
def test_a_template_that_writes_without_end_is_stopped_before_it_fills_the_memory(template: str) -> None:
    with pytest.raises(TemplateLimitError, match="more than 1000000 characters"):
        within_limits(_render(template), max_characters=1_000_000)


def test_what_ends_is_as_it_was() -> None:
    template = "{% for i in range(100) %}{{ i }},{% endfor %}"
    assert within_limits(_render(template), max_characters=1000) == _render(template)()


def test_the_work_around_it_ends_it() -> None:
    with pytest.raises(PayloadTooLargeError):
        WorkLimit(0.01).run(within_limits, _render(NESTED), max_characters=1000)
    limit = WorkLimit(1000.0)
    timer = threading.Timer(0.02, limit.abandon)
    timer.start()
    with pytest.raises(ClientGoneError):
        limit.run(within_limits, _render(NESTED), max_characters=1000)


def test_who_traced_before_traces_afterwards() -> None:
    seen: list[str] = []

    def trace(frame: object, event: str, arg: object) -> None:
        del frame, arg
        seen.append(event)

    others = sys.gettrace()
    sys.settrace(trace)
    try:
        within_limits(lambda: "a", max_characters=10)
        with pytest.raises(TemplateLimitError):
            within_limits(_render(NESTED), max_characters=10, max_steps=100)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(others)
    assert seen
