"""Every group of completions that the pages show as an example ranks as it is printed, by the embedded model."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.service_process import ServiceProcess, service_process
from vigor_client import VigorClient
from vigor_client.cli.main import main
from vigor_client.schemas.scoring import Group, GroupScore, ScoreRequest

ROOT = Path(__file__).resolve().parents[2]
README, CLIENT, EXAMPLES_JS = (
    (ROOT / name).read_text() for name in ("README.md", "docs/client.md", "service/vigor_service/inspector/examples.js")
)
DOCUMENTED_URL = "http://127.0.0.1:8000"
READY_SECONDS = 400.0  # the embedded model may have to be fetched first
MARGIN = 1.2  # how much larger the scaled norm of the next completion is at least

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(scope="module")
def embedded_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with the model that is used where none is named."""
    directory, batch = tmp_path_factory.mktemp("embedded"), ("--max-batch-tokens", "4096")  # or it would measure that
    with service_process(directory, *batch, wait_ready=False) as service:
        with VigorClient(url_of(service)) as client:
            client.wait_until_ready(READY_SECONDS)
        yield service


def url_of(service: ServiceProcess) -> str:
    return str(service.http.base_url).rstrip("/")


def client_group() -> dict[str, Any]:
    """The group of docs/client.md's first example, which is in Python."""
    source = re.findall(r"^groups = (\[.*?^\])$", CLIENT, re.MULTILINE | re.DOTALL)[0]
    (group,) = ast.literal_eval(source)
    return group


def jsonl_line() -> str:
    """The line of docs/client.md's JSONL example."""
    return re.findall(r"^```json\n(\{.*\})\n```$", CLIENT, re.MULTILINE)[0]


def inspector_groups() -> list[dict[str, Any]]:
    """What the inspector's buttons fill in; its boxes say that each completion ended by itself."""
    array = EXAMPLES_JS.partition("EXAMPLES = ")[2].rstrip().rstrip(";")
    examples = json.loads(re.sub(r",(\s*[\]}])", r"\1", re.sub(r"^(\s*)(\w+):", r'\1"\2":', array, flags=re.MULTILINE)))
    return [
        {
            "messages": [{"role": "user", "content": example["prompt"]}],
            "completions": [{"text": text, "finish_reason": "stop"} for text in example["completions"]],
        }
        for example in examples
    ]


def openapi_group() -> dict[str, Any]:
    """The example of a score request in the OpenAPI description."""
    (example,) = ScoreRequest.model_json_schema()["examples"]
    (group,) = example["groups"]
    return group


@pytest.mark.parametrize(
    "group",
    [client_group(), json.loads(jsonl_line()), openapi_group(), *inspector_groups()],
    ids=["client.md", "client.md-jsonl", "openapi", "arithmetic", "capital", "function"],
)
def test_an_example_ranks_in_the_order_in_which_it_is_written(
    embedded_service: ServiceProcess, group: dict[str, Any]
) -> None:
    assert {completion.finish_reason for completion in Group.model_validate(group).completions} == {"stop"}
    with VigorClient(url_of(embedded_service)) as client:
        check_order(client.score([group]).groups[0])


def check_order(scores: GroupScore) -> None:
    """The right answer stands first, and each of the others comes after it by a margin."""
    norms = [score.scaled_grad_norm or 0.0 for score in scores.completions]
    assert all(following > MARGIN * norm > 0 for norm, following in pairwise(norms)), norms
    assert [score.rank for score in scores.completions] == [float(rank) for rank in range(1, len(norms) + 1)]


def test_the_example_of_the_readme_prints_what_stands_below_it(embedded_service: ServiceProcess) -> None:
    example, output = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL)[0]
    example = example.replace(DOCUMENTED_URL, url_of(embedded_service))
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=120)
    assert result.stdout == output, result.stderr
    norms = [float(line.split()[0]) for line in output.splitlines()[1:]]
    assert all(following > MARGIN * norm for norm, following in pairwise(norms)), norms
    assert f"## Score {('two', 'three', 'four')[len(norms) - 2]} answers\n" in README


def test_what_the_readme_says_of_a_sentence_beside_the_question_is_so(embedded_service: ServiceProcess) -> None:
    ((sentence, norm),) = re.findall(r'"([^"]+)" scores ([\d.]+) here', README)
    completions = [{"text": text, "finish_reason": "stop"} for text in (sentence, "The answer is 8.")]
    question = [{"role": "user", "content": "What is 3 + 4?"}]
    with VigorClient(url_of(embedded_service)) as client:
        beside, wrong = client.score([{"messages": question, "completions": completions}]).groups[0].completions
    assert beside.scaled_grad_norm == pytest.approx(float(norm), abs=0.05)
    assert (beside.rank, wrong.rank) == (1.0, 2.0)


def test_the_example_of_the_client_has_the_norms_that_the_page_says(embedded_service: ServiceProcess) -> None:
    ((first, second),) = re.findall(r"the scaled norms are ([\d.]+) and ([\d.]+),", CLIENT)
    with VigorClient(url_of(embedded_service)) as client:
        scores = client.score([client_group()]).groups[0].completions
    norms = [score.scaled_grad_norm for score in scores]
    assert norms == pytest.approx([float(first), float(second)], abs=0.01)
    assert [score.reward for score in scores] == [1.0, -1.0]


def test_the_jsonl_example_is_scored_by_the_command_line_as_printed(
    embedded_service: ServiceProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "groups.jsonl"
    source.write_text(f"{jsonl_line()}\n")
    assert main(["score", str(source), "--url", url_of(embedded_service)]) == 0
    right, wrong = json.loads(capsys.readouterr().out)["completions"]
    assert (right["reward"], wrong["reward"]) == (1.0, -1.0)
