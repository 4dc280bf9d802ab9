"""The documentation says what the code does: settings, routes, errors, limits, links, and examples that run."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fastapi import FastAPI
from pydantic import BaseModel
from safetensors.torch import save_file

from tests.support.fake_scorer import VOCAB_SIZE
from tests.support.live_service import LiveService, live_service
from tests.support.preloaded_process import preloaded_children
from vigor_client import VigorClient, errors, ranking
from vigor_client.cli.main import main
from vigor_client.client import DEFAULT_TIMEOUT_SECONDS
from vigor_client.publishing.progress import PublishPhase
from vigor_client.schemas.attribution import (
    MAX_ATTRIBUTED_TOKENS,
    AttributionRequest,
    AttributionResponse,
    LayerShare,
    ParameterShare,
    TokenShare,
)
from vigor_client.schemas.common import MAX_WEIGHT_VERSION
from vigor_client.schemas.engines import EngineList, ScaleRequest
from vigor_client.schemas.fault_limit import MAX_NAMES
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.prompts import MAX_MESSAGES
from vigor_client.schemas.scoring import (
    BEAT_SECONDS,
    MAX_COMPLETIONS,
    MAX_COMPLETIONS_PER_GROUP,
    MAX_GROUPS,
    MAX_WAIT_SECONDS,
    Completion,
    CompletionScore,
    ErrorLine,
    Group,
    GroupLine,
    LastLine,
    SampleRequest,
    ScoreRequest,
    ScoreResponse,
    Timing,
    Usage,
)
from vigor_client.schemas.service import Health, ModelInfo
from vigor_client.schemas.weights import (
    MAX_UPDATE_FILES,
    BroadcastRequest,
    CommitResponse,
    TakeRequest,
    TensorList,
    UpdateRequest,
    UpdateStatus,
    WeightsInfo,
)
from vigor_client.transport import retry, wire
from vigor_client.weight_format.delta_index import MAX_INDEX_BYTES, DeltaIndex
from vigor_service.app import create_app
from vigor_service.compat.openrlhf import OpenRLHFRequest, OpenRLHFRewards
from vigor_service.compat.slime import SlimeRequest
from vigor_service.compat.weight_refresh import PullWeights, SGLangModelInfo, UpdateFromDisk
from vigor_service.errors import MAX_LISTED_ERRORS
from vigor_service.http import problems
from vigor_service.http.connection_limits import DEFAULT_LIMITS
from vigor_service.http.request_body import MAX_CONTAINERS, MAX_VALUES
from vigor_service.observability.logs import JsonFormatter, TextFormatter
from vigor_service.runtime import LoadedModel
from vigor_service.sample_groups.assembly import MAX_HELD_BYTES
from vigor_service.sample_groups.samples import BYTES_PER_SAMPLE, BYTES_PER_TOKEN
from vigor_service.scoring.chat_prompts import MAX_TEMPLATE_VALUES
from vigor_service.scoring.template_limit import MAX_STEPS
from vigor_service.scoring.text_tokens import MAX_CHARACTERS_PER_TOKEN, MAX_TEMPLATE_SHARE
from vigor_service.server import KEEP_ALIVE_SECONDS
from vigor_service.settings import Settings
from vigor_service.threads.file_threads import MODEL_SECONDS, STEP_SECONDS
from vigor_service.threads.preparation import MAX_WAITING
from vigor_service.weights.sources.published_versions import MAX_VERSIONS
from vigor_service.weights.verification.checkpoint import MAX_CHECKPOINT_TENSORS
from vigor_service.weights.verification.tensor_files import MAX_HEADER_BYTES
from vigor_trainer.config.arguments import VigorArguments

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
HTTP_API, CONFIGURATION, CLIENT = (
    (DOCS / name).read_text() for name in ("http-api.md", "configuration.md", "client.md")
)

DOCUMENTED_URL = "http://127.0.0.1:8000"
HTTP_EXAMPLES: list[type[BaseModel]] = [
    ScoreRequest,
    ScoreResponse,
    SampleRequest,
    AttributionRequest,
    AttributionResponse,
    OpenRLHFRequest,
    OpenRLHFRewards,
    SlimeRequest,
    WeightsInfo,
    TensorList,
    UpdateRequest,
    UpdateStatus,
    TakeRequest,
    BroadcastRequest,
    CommitResponse,
    DeltaIndex,
    SGLangModelInfo,
    UpdateFromDisk,
    PullWeights,
    ModelInfo,
    EngineList,
    ScaleRequest,
    Health,
    Health,
    Problem,
]
DESCRIBED_IN_TABLES: list[type[BaseModel]] = [
    ScoreRequest,
    Group,
    Completion,
    ScoreResponse,
    CompletionScore,
    Usage,
    Timing,
    GroupLine,
    LastLine,
    ErrorLine,
    UpdateRequest,
    BroadcastRequest,
    AttributionRequest,
    AttributionResponse,
    TokenShare,
    LayerShare,
    ParameterShare,
]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


# ------------------------------------------------------------------------------------------- all pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in relative if not _exists(page, target)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_is_left_unfinished(page: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|TBD)\b", page.read_text())


def _exists(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    destination = (page.parent / path).resolve() if path else page
    return destination.exists() and (not anchor or anchor in _anchors(destination.read_text()))


def _anchors(text: str) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -------------------------------------------------------------------------------------- configuration.md


def test_the_table_of_settings_is_the_settings() -> None:
    rows = [
        table_row(
            f"`--{name.replace('_', '-')}`",
            f"`VIGOR_{name.upper()}`",
            _shown(field.default),
            " ".join((field.description or "").split()),
        )
        for name, field in Settings.model_fields.items()
    ]
    assert (
        "\n".join(["| flag | environment variable | default | meaning |", "|---|---|---|---|", *rows, ""])
        in CONFIGURATION
    )


def test_the_table_of_the_trainer_is_its_arguments() -> None:
    rows = [
        table_row(
            f"`--{field.name}`",
            _default(field),
            field.metadata["help"].replace("<", r"\<"),
        )
        for field in fields(VigorArguments)
    ]
    assert "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows, ""]) in CONFIGURATION


def test_every_variable_that_is_read_is_documented_and_no_other() -> None:
    sources = [path for package in ("client", "trainer") for path in (ROOT / package).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"environ[^\n]*\"(VIGOR_[A-Z_]+)\"", path.read_text())}
    documented = set(re.findall(r"\bVIGOR_[A-Z_]+", CONFIGURATION))
    assert documented == read | {f"VIGOR_{name.upper()}" for name in Settings.model_fields}


def test_the_lines_of_log_on_the_page_are_what_the_service_writes() -> None:
    (line,) = map(json.loads, blocks(CONFIGURATION, "json"))
    own = {"time", "level", "logger", "message"}
    record = logging.makeLogRecord(
        {name: value for name, value in line.items() if name not in own}
        | {"name": line["logger"], "levelname": line["level"].upper(), "msg": line["message"]}
        | {"created": datetime.fromisoformat(line["time"]).timestamp()}
    )
    assert json.loads(JsonFormatter().format(record)) == line
    (text,) = (block.strip() for block in blocks(CONFIGURATION, "text"))
    date_and_time = r"\S+ \S+ "
    assert re.sub(date_and_time, "", text, count=1) == re.sub(
        date_and_time, "", TextFormatter().format(record), count=1
    )


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return _shown(" ".join(field.default_factory()))
    return "required" if field.default is MISSING else _shown(field.default)


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# ------------------------------------------------------------------------------------- approximations.md


def test_the_numbers_of_the_approximations_are_those_of_the_result() -> None:
    page = (DOCS / "approximations.md").read_text()
    (link,) = set(re.findall(r"\]\((\S*results/fidelity_\S*\.md)\)", page))
    assert _tables((DOCS / link).read_text()) == _tables(page)[1:]


def test_every_approximation_on_the_page_is_a_setting() -> None:
    tables = "".join(_tables((DOCS / "approximations.md").read_text()))
    flags = set(re.findall(r"--([a-z][a-z-]*)", tables))
    assert {"parameters", "norm-probes", "dtype"} <= flags
    assert {flag.replace("-", "_") for flag in flags} <= set(Settings.model_fields)


def _tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


# ------------------------------------------------------------------------------------------- http-api.md


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The application, never started: nothing is loaded."""

    def load_model() -> LoadedModel:
        raise AssertionError("not started")

    return create_app(Settings(), load_model)


def test_the_calls_are_those_of_the_application(app: FastAPI) -> None:
    operations = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    rows = set(re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", HTTP_API, re.MULTILINE))
    headings = set(re.findall(r"^### `([A-Z]+) (/[^`]*)`$", HTTP_API, re.MULTILINE))
    assert rows == headings == operations


def test_no_call_is_mentioned_that_the_application_lacks(app: FastAPI) -> None:
    own = {(method, route.path) for route in app.state.endpoints for method in route.methods}
    assert set(re.findall(r"`(GET|POST|PUT|DELETE) (/[^`]*)`", HTTP_API)) == own


def test_every_error_is_in_the_table_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| [^|]+ \| [^|]*\|$", HTTP_API, re.MULTILINE)
    answered = {(kind.status, kind.code) for kind in problems.PROBLEMS.values()}
    of_the_protocol = {(404, "not_found"), (405, "method_not_allowed"), (500, "internal")}
    documented = [(int(status), code) for status, code in rows]
    assert sorted(documented) == sorted(answered | of_the_protocol)


def test_every_example_fits_its_schema() -> None:
    for schema, example in zip(HTTP_EXAMPLES, blocks(HTTP_API, "json"), strict=True):
        schema.model_validate_json(example)


def test_the_worked_answer_belongs_to_the_worked_request() -> None:
    request_json, response_json, *_ = blocks(HTTP_API, "json")
    request = ScoreRequest.model_validate_json(request_json)
    response = ScoreResponse.model_validate_json(response_json)
    assert [group.id for group in response.groups] == [group.id for group in request.groups]
    scores = response.groups[0].completions
    assert len(scores) == len(request.groups[0].completions)
    group_ranks = ranking.ranks([score.scaled_grad_norm for score in scores])
    assert [score.rank for score in scores] == group_ranks
    assert [score.reward for score in scores] == pytest.approx(ranking.rank_rewards(group_ranks), abs=1e-4)
    for score in scores:
        if score.grad_norm is not None:
            assert score.scaled_grad_norm == pytest.approx(score.grad_norm * math.sqrt(score.num_tokens), rel=1e-4)


@pytest.mark.parametrize("schema", DESCRIBED_IN_TABLES, ids=lambda schema: schema.__name__)
def test_every_field_is_described(schema: type[BaseModel]) -> None:
    described = set(re.findall(r"`(\w+)`", HTTP_API))
    assert set(schema.model_fields) - described == set()


def test_the_limits_are_those_of_the_code() -> None:
    limits = {
        "groups in a request": MAX_GROUPS,
        "completions in a group": MAX_COMPLETIONS_PER_GROUP,
        "completions in a request": MAX_COMPLETIONS,
        "messages in a prompt": MAX_MESSAGES,
        "tokens of a prompt with one completion, for an attribution": MAX_ATTRIBUTED_TOKENS,
        "`wait_seconds`": f"{MAX_WAIT_SECONDS:g}",
        "`weight_version`": MAX_WEIGHT_VERSION,
        "places listed in an error": MAX_LISTED_ERRORS,
        "files in an update": MAX_UPDATE_FILES,
        "bytes of the header of a safetensors file in an update": MAX_HEADER_BYTES,
        "tensors in a checkpoint": MAX_CHECKPOINT_TENSORS,
        "bytes of an index of shards or of a delta": MAX_INDEX_BYTES,
        "versions applied to reach a pulled version": MAX_VERSIONS,
        "seconds for a disk to answer, per 4 MiB or file name; and to verify or store a whole update": (
            f"{STEP_SECONDS:g}; {MODEL_SECONDS:g}"
        ),
        "steps of a chat template for one prompt; a step is a template line or a function call": MAX_STEPS,
        "values in the messages of one prompt and in its other template inputs, not counting contents": (
            MAX_TEMPLATE_VALUES
        ),
        "characters that a chat template writes for one prompt; a macro's output counts again where it is used": (
            f"{MAX_TEMPLATE_SHARE * MAX_CHARACTERS_PER_TOKEN} per token of the model's `max_sequence_tokens`"
        ),
        "requests that wait for tokenization or for ranking": f"{MAX_WAITING} of each; further ones get 429",
        "bytes of all samples of incomplete and recently answered groups": (
            f"{MAX_HELD_BYTES}: {BYTES_PER_SAMPLE} per sample and {BYTES_PER_TOKEN} per token"
        ),
        "values, and objects and arrays, in a JSON body": f"{MAX_VALUES}, {MAX_CONTAINERS}",
        "names in a JSON object": MAX_NAMES,
        "seconds for the headers of a request to arrive": f"{DEFAULT_LIMITS.header_seconds:g}",
        "seconds for the rest of a refused body to arrive, before the connection is closed": (
            f"{DEFAULT_LIMITS.refused_body_seconds:g}"
        ),
        "seconds that a connection may be idle between two requests": KEEP_ALIVE_SECONDS,
        "seconds for the caller to read more of an answer that fills the socket's buffers": (
            f"{DEFAULT_LIMITS.stalled_answer_seconds:g}"
        ),
        "idle connections; above it, the one that has been idle longest is closed": DEFAULT_LIMITS.max_waiting,
    }
    assert [what for what, limit in limits.items() if table_row(what, limit) not in HTTP_API] == []


def test_the_pause_between_signs_of_life_is_that_of_the_code() -> None:
    assert f"an empty line is sent every {BEAT_SECONDS:g} seconds" in HTTP_API


def test_every_flag_on_every_page_of_the_service_exists() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert set(re.findall(r"`(--[a-z-]+)`", HTTP_API)) <= flags


# ---------------------------------------------------------------------------------------------- client.md


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "staging", allow_broadcast=True) as running:
        yield running


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "groups.jsonl").write_text(blocks(CLIENT, "json")[0])
    (tmp_path / "checkpoint-100").mkdir()
    save_file(dict(policy().state_dict()), tmp_path / "checkpoint-100" / "model.safetensors")
    return tmp_path


def policy() -> torch.nn.Module:
    """A module with the tensors of the fake scorer."""
    return torch.nn.ModuleDict({"embed": torch.nn.Embedding(VOCAB_SIZE, 2), "norm": torch.nn.RMSNorm(3)})


def train_one_step(model: torch.nn.Module) -> None:
    """Change a little, as training does."""
    with torch.no_grad():
        model.get_parameter("norm.weight").add_(0.5)


@pytest.mark.usefixtures("workplace")
def test_the_python_examples_run_in_order(service: LiveService) -> None:
    namespace: dict[str, object] = {"model": policy(), "train_one_step": train_one_step}
    with preloaded_children():
        for number, source in enumerate(blocks(CLIENT, "python"), start=1):
            code = source.replace(DOCUMENTED_URL, str(service.http.base_url))
            exec(compile(code, f"client.md, example {number}", "exec"), namespace)  # noqa: S102 - our own documentation
    assert service.http.get("/v1/weights").json()["weight_version"] == 105


def test_the_command_lines_run_in_order(
    service: LiveService, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIGOR_URL", str(service.http.base_url))
    lines = re.findall(r"^\$ (.+)$", "\n".join(blocks(CLIENT, "console")), re.MULTILINE)
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert (program, main(arguments)) == ("vigor", 0), capsys.readouterr().err
    assert json.loads((workplace / "scores.jsonl").read_text())["id"] == "q-17"
    assert service.http.get("/v1/weights").json()["weight_version"] == 101


def test_the_shown_status_has_the_rows_of_the_command(service: LiveService, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", str(service.http.base_url)]) == 0
    (shown,) = (block.splitlines() for block in blocks(CLIENT, "text") if block.startswith("service "))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [line.split()[0] for line in shown]


def test_the_shown_faults_of_groups_are_what_the_client_says() -> None:
    (shown,) = (block.splitlines() for block in blocks(CLIENT, "text") if block.startswith("group "))
    groups = [
        {"prompt": "a", "completions": ["b", "c", {}]},
        {"prompt": "a", "completion": ["b"]},
        {"prompt": "a", "completions": ["b"]},
        {"prompt": "a", "completions": [[1, -1]]},
    ]
    with VigorClient(DOCUMENTED_URL) as client, pytest.raises(ValueError, match=r"^group 0") as raised:
        client.score(groups)
    assert str(raised.value).split("\n  ") == shown


def test_the_phases_of_a_publication_are_in_the_table() -> None:
    phases = get_args(PublishPhase)
    named = re.findall(r"^\| `([a-z]+)` \|", CLIENT, re.MULTILINE)
    assert [name for name in named if name in phases] == list(phases)


def test_every_option_of_the_command_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("score", "status", "push"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    rows = re.findall(r"^\| (`--[^|]+) \|", CLIENT, re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", " ".join(rows))) == options


def test_every_error_class_is_in_the_table_and_no_other() -> None:
    named = re.findall(r"^\| (?:[├└] )?`(\w+Error)` \|", CLIENT, re.MULTILINE)
    assert sorted(named) == sorted(
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.VigorError)
    )


@pytest.mark.parametrize(("code", "error"), errors.PROBLEM_ERRORS.items())
def test_every_code_stands_beside_its_class(code: str, error: type[errors.ProblemError]) -> None:
    assert re.search(rf"^\| [├└] `{error.__name__}` \| `{code}`", CLIENT, re.MULTILINE)


def test_the_bounds_of_a_call_are_those_of_the_code() -> None:
    bounds: Mapping[str, str] = {
        "silence of the service within one attempt (`timeout_seconds`)": f"{DEFAULT_TIMEOUT_SECONDS:g} s",
        "silence within an answer in lines, in which the service sends a line at least every 10 s": (
            f"{wire.SILENCE_BETWEEN_LINES_SECONDS:g} s"
        ),
        "making a connection": f"{wire.CONNECT_TIMEOUT_SECONDS:g} s",
        "retries of one call (`max_retries`)": f"{retry.DEFAULT_MAX_RETRIES}",
        "pause before the first retry": f"a random part of {retry.FIRST_DELAY_SECONDS:g} s",
        "longest such pause": f"{retry.LONGEST_DELAY_SECONDS:g} s",
        "all attempts together": f"no retry begins later than {retry.TOTAL_SECONDS:g} s",
    }
    assert [what for what, bound in bounds.items() if f"| {what} | {bound}" not in CLIENT] == []
