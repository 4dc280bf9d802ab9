"""The error tree: drawn once in the docstring, and true."""

import pickle
import re

import pytest

import vigor_client
from vigor_client import errors
from vigor_client.errors import (
    MissingDependencyError,
    ProblemError,
    TensorsRefusedError,
    UnreachableError,
    VigorError,
    WeightVersionMismatchError,
)
from vigor_client.schemas.problems import FieldError, Problem
from vigor_client.transport.wire import REQUEST_ID_HEADER

# every code of the HTTP contract that a caller can act on
CODES = [
    "engines_fixed",
    "invalid_request",
    "unauthenticated",
    "forbidden",
    "weight_version_mismatch",
    "weight_digest_mismatch",
    "weight_base_mismatch",
    "update_state",
    "payload_too_large",
    "sequence_too_long",
    "queue_full",
    "loading",
    "draining",
    "weights_poisoned",
    "deadline_exceeded",
    "group_conflict",
    "group_incomplete",
]


def drawn_tree() -> dict[str, str]:
    """Class -> parent, as the docstring draws it."""
    parents: list[str] = []
    tree: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)(\w+Error)\b", line)
        if match is None:
            continue
        depth, name = len(match[1]) // 4, match[2]
        parents[depth:] = [name]
        if depth:
            tree[name] = parents[depth - 1]
    return tree


def real_tree(root: type[Exception] = VigorError) -> dict[str, str]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    tree = {child.__name__: root.__name__ for child in children}
    for child in children:
        tree |= real_tree(child)
    return tree


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    assert drawn_tree() == real_tree()


def test_every_error_is_public() -> None:
    assert set(real_tree()) | {"VigorError"} <= set(vigor_client.__all__)


def test_every_code_of_the_contract_has_a_class() -> None:
    assert sorted(errors.PROBLEM_ERRORS) == sorted(CODES)


def problem(**fields: object) -> Problem:
    base = {"type": "about:blank", "title": "t", "status": 409, "code": "weight_version_mismatch", "detail": "no"}
    return Problem.model_validate({**base, **fields})


def test_a_problem_carries_what_the_service_said() -> None:
    error = WeightVersionMismatchError(problem(have=3, want=4), request_id="r1")
    assert (error.status, error.code, error.detail, error.request_id) == (409, "weight_version_mismatch", "no", "r1")
    assert (error.have, error.want, error.data) == (3, 4, {"have": 3, "want": 4})
    assert str(error) == "no (409 weight_version_mismatch, request r1)"


def test_a_problem_names_every_place_up_to_a_readable_number() -> None:
    places = [FieldError(loc=["groups", index, "completions"], msg="wrong") for index in range(12)]
    lines = str(ProblemError(problem(errors=places), request_id="r")).splitlines()
    assert lines[1] == "  group 0, `completions`: wrong"
    assert lines[-1] == "  ... and 2 more"
    assert len(lines) == 12


def test_refused_tensors_are_listed_by_name() -> None:
    error = TensorsRefusedError({"b": "missing", "a": "has shape [1], the service needs [2]"})
    assert str(error).splitlines()[1:] == ["  a: has shape [1], the service needs [2]", "  b: missing"]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(("name", "base"), [("NotReadyError", TimeoutError), ("MissingDependencyError", ImportError)])
def test_errors_are_also_what_python_calls_them(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), base)


@pytest.mark.parametrize(
    "error",
    [
        WeightVersionMismatchError(
            problem(have=3, want=4, errors=[FieldError(loc=["a"], msg="b")]), request_id="r", retry_after_seconds=2.0
        ),
        TensorsRefusedError({"a": "missing"}),
        MissingDependencyError("torch", extra="trainer", purpose="reading"),
        UnreachableError("cannot reach", request_id="r"),
    ],
)
def test_errors_cross_process_boundaries_whole(error: VigorError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_request_id_header_is_the_contracts() -> None:
    assert REQUEST_ID_HEADER == "X-Request-Id"
