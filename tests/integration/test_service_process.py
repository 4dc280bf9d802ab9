"""The real service on a tiny checkpoint: bad requests, weight updates, and how it ends."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save

from tests.support.preloaded_process import preloaded
from tests.support.pushing import FILE, UPDATES, announce, open_update, push, push_bytes
from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint, tiny_tokenizer
from tests.support.waiting import wait_until
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import ScoreResponse
from vigor_client.weight_format.digest import model_digest
from vigor_service.observability.loading_progress import LoadingPhase
from vigor_service.weights.verification.fingerprint import describe

JSON = {"Content-Type": "application/json"}
GROUP = {"prompt_ids": [1, 2, 3], "completions": [[4, 5], [6], [7, 8, 9]]}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with service_process(tmp_path_factory.mktemp("service"), "--model", str(checkpoint)) as running:
        yield running


def _scores(service: ServiceProcess, *groups: object) -> list[object]:
    answer = service.http.post("/v1/score", json={"groups": list(groups) or [GROUP]})
    assert answer.status_code == 200, answer.text
    return answer.json()["groups"]


def _tensors(checkpoint: Path) -> Tensors:
    return load_file(checkpoint / "model.safetensors")


# ---------------------------------------------------------------------------------------- bad requests


def _wrong_score_bodies() -> Iterator[object]:
    """Bodies that are JSON and wrong."""
    yield from (None, 1, "x", [], {}, True, 1.5, [[]], {"groups": None}, {"groups": {}}, {"groups": "x"})
    for group in (None, 1, "x", [], {}, {"prompt_ids": [1]}, {"completions": [[1]]}):
        yield {"groups": [group]}
    for prompt in (None, [], "", "1", 1, [None], ["1"], [1.0], [-1], [320], [10**30], [True], [[1]], {"0": 1}):
        yield {"groups": [{**GROUP, "prompt_ids": prompt}]}
    for completions in (None, [], "x", 1, [None], [1], [[None]], [["1"]], [[-1]], [[320]], [[2.5]], [{}], [[[1]]]):
        yield {"groups": [{**GROUP, "completions": completions}]}
    for completion in (
        {"ids": [1], "text": "x"},
        {"ids": None},
        {"text": 1},
        {"ids": [1], "mask": [1, 1]},
        {"ids": [1], "mask": [2]},
        {"ids": [1], "mask": [True]},
        {"text": "x", "mask": [1]},
        {"ids": [1], "finish_reason": "eos"},
        {"ids": [1], "extra": 1},
        {"ids": [4] * 300},
        {"text": "x" * 300},
        {"text": "x" * 1_000_000},
    ):
        yield {"groups": [GROUP, {**GROUP, "completions": [[1], completion]}]}
    for messages in ([], [{}], "x", [{"role": "user"}], [{"role": "", "content": "x"}], [{"role": 1, "content": "x"}]):
        yield {"groups": [{"messages": messages, "completions": ["x"]}]}
    for other_prompt in ({"prompt": "x"}, {"messages": [{"role": "user", "content": "x"}]}):
        yield {"groups": [{**GROUP, **other_prompt}]}
    yield {"groups": [{"prompt": "", "completions": ["x"]}]}
    yield {"groups": [{**GROUP, "id": "x" * 257}]}
    yield {"groups": [{**GROUP, "unknown": 1}]}
    for option in (
        {"weight_version": -1},
        {"weight_version": "1"},
        {"weight_version": 1.0},
        {"weight_version": 10**4000},
        {"weight_digest": "sha256:0"},
        {"wait_seconds": -1},
        {"wait_seconds": 601},
        {"wait_seconds": "soon"},
        {"reward": "best"},
        {"ties": "random"},
        {"truncated": "skip"},
        {"unknown": 1},
        {"x" * 5000: 1},
    ):
        yield {"groups": [GROUP], **option}
    yield {"groups": []}
    yield {"groups": [GROUP] * 513}
    yield {"groups": [{**GROUP, "completions": [[1]] * 513}]}
    yield {
        "groups": [{"prompt_ids": [999], "completions": [[999], "x" * 300]}, {"prompt": "x", "completions": [[320]]}]
    }


def _no_json() -> Iterator[bytes]:
    """Bodies that are no JSON."""
    yield from (b"", b"{", b"groups", b"\x00\x01", b'{"groups": [1,]}', b"{'groups': []}", b"\xff\xfe{\x00}\x00")
    yield b'{"groups": "\xc3\x28"}'
    yield b'{"groups": "\\ud800"}'
    yield b"[" * 200_000
    yield b'{"groups":' * 100_000
    yield b'{"groups": [{"prompt_ids": [' + b"9" * 100_000 + b'], "completions": [[1]]}]}'
    yield b'{"groups": [{"prompt_ids": [NaN], "completions": [[1]]}]}'
    yield b'{"groups": [{"prompt_ids": [1], "completions": [[1]]}], "wait_seconds": NaN}'
    yield b'{"groups": [{"prompt_ids": [1], "completions": [[1]]}], "wait_seconds": -Infinity}'


def test_a_hundred_bad_requests_name_their_place_and_harm_nothing(service: ServiceProcess) -> None:
    before = _scores(service)
    bodies = [json.dumps(body).encode() for body in _wrong_score_bodies()] + list(_no_json())
    assert len(bodies) >= 100
    for body in bodies:
        answer = service.http.post("/v1/score", content=body, headers=JSON)
        _assert_names_its_place(answer, body)
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/msgpack"):
        answer = service.http.post("/v1/score", content=b"{}", headers={"Content-Type": media_type})
        assert answer.status_code == 415
    assert _scores(service) == before
    assert b"Traceback" not in service.log.read_bytes()


def _assert_names_its_place(answer: httpx.Response, body: bytes) -> None:
    assert 400 <= answer.status_code < 500, (body[:200], answer.status_code, answer.text[:500])
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(answer.content) < 50_000
    problem = Problem.model_validate(answer.json())
    assert problem.code in ("invalid_request", "sequence_too_long"), body[:200]
    assert all(error.msg for error in problem.errors)
    assert problem.errors, (body[:200], problem)


def test_fifty_megabytes_of_nonsense_cost_little(service: ServiceProcess) -> None:
    before = _scores(service)
    nonsense = b"[" + b"7," * (25 << 20)
    for content in (
        nonsense,
        iter([nonsense[start : start + (1 << 20)] for start in range(0, len(nonsense), 1 << 20)]),
    ):
        answer = service.http.post("/v1/score", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
        assert answer.elapsed.total_seconds() < 5
    assert _scores(service) == before


# ------------------------------------------------------------------------------------------- scoring


def test_text_and_messages_equal_ids_tokenized_by_hand(service: ServiceProcess) -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = {"prompt_ids": prompt_ids, "completions": [[*tokenizer.encode("7"), 257], [*tokenizer.encode("eight"), 257]]}
    text = {"messages": messages, "completions": [{"text": "7", "finish_reason": "stop"}, "eight"]}
    plain = {"prompt": "3 + 4", "completions": ["7"]}
    plain_ids = {"prompt_ids": tokenizer.encode("3 + 4"), "completions": [[*tokenizer.encode("7"), 257]]}
    by_hand, rendered = _scores(service, ids)[0], _scores(service, text)[0]
    assert by_hand == rendered
    assert _scores(service, plain) == _scores(service, plain_ids)


def test_a_score_does_not_depend_on_what_else_is_asked(service: ServiceProcess) -> None:
    alone = ScoreResponse.model_validate(service.http.post("/v1/score", json={"groups": [GROUP]}).json())
    other = {"prompt_ids": [9] * 40, "completions": [[token] * 30 for token in range(20)]}
    amid = ScoreResponse.model_validate(service.http.post("/v1/score", json={"groups": [other, GROUP, other]}).json())
    for one, same in zip(alone.groups[0].completions, amid.groups[1].completions, strict=True):
        assert one.grad_norm == pytest.approx(same.grad_norm, rel=1e-5)
        assert (one.rank, one.reward) == (same.rank, same.reward)


# ------------------------------------------------------------------------------------------- weights


def test_a_good_full_update_changes_scores_and_digest_and_can_be_taken_back(
    service: ServiceProcess, checkpoint: Path
) -> None:
    before, digest = _scores(service), service.http.get("/v1/weights").json()["weight_digest"]
    old = _tensors(checkpoint)
    assert digest == model_digest(describe(name, tensor) for name, tensor in old.items())
    new = {name: tensor * 1.25 for name, tensor in old.items()}
    committed = push(service.http, new, version=1).json()
    assert committed["num_changed_tensors"] == len(new)
    assert committed["weight_digest"] == model_digest(describe(name, tensor) for name, tensor in new.items())
    answer = service.http.post(
        "/v1/score", json={"groups": [GROUP], "weight_version": 1, "weight_digest": committed["weight_digest"]}
    )
    assert answer.json()["groups"] != before
    assert push(service.http, old, version=2).json()["weight_digest"] == digest
    assert _scores(service) == before


def _any_matrix(tensors: Tensors) -> str:
    return next(name for name, tensor in tensors.items() if tensor.dim() == 2)


def _wrong_shape(tensors: Tensors) -> Tensors:
    name = _any_matrix(tensors)
    return {**tensors, name: tensors[name][:-1].clone()}


def _missing(tensors: Tensors) -> Tensors:
    name = _any_matrix(tensors)
    return {other: tensor for other, tensor in tensors.items() if other != name}


def _not_finite(tensors: Tensors) -> Tensors:
    name = _any_matrix(tensors)
    tensor = tensors[name].clone()
    tensor[1, 1] = float("nan")
    return {**tensors, name: tensor}


@pytest.mark.parametrize("damage", [_wrong_shape, _missing, _not_finite])
def test_an_update_with_a_wrong_tensor_is_refused_by_its_name(
    service: ServiceProcess, checkpoint: Path, damage: Callable[[Tensors], Tensors]
) -> None:
    before, weights, tensors = _scores(service), service.http.get("/v1/weights").json(), _tensors(checkpoint)
    refused = push(service.http, damage({name: tensor + 1 for name, tensor in tensors.items()}), version=9)
    assert refused.status_code == 422
    assert [error["loc"][-1] for error in refused.json()["errors"]] == [_any_matrix(tensors)]
    assert service.http.get("/v1/weights").json() == weights
    assert _scores(service) == before


def test_a_truncated_file_and_a_wrong_checksum_are_refused_by_name(service: ServiceProcess, checkpoint: Path) -> None:
    before, data = _scores(service), save({name: tensor + 1 for name, tensor in _tensors(checkpoint).items()})
    truncated = push_bytes(service.http, data[:-7])
    assert (truncated.status_code, truncated.json()["errors"][0]["loc"]) == (422, ["files", FILE])
    opened = open_update(service.http, announce(data)).json()
    path = f"{UPDATES}/{opened['update_id']}"
    flipped = service.http.put(f"{path}/files/{FILE}", content=data[:-1] + bytes([data[-1] ^ 1]))
    assert (flipped.status_code, flipped.json()["errors"][0]["loc"]) == (422, ["files", FILE])
    assert service.http.post(f"{path}/commit").json()["missing_files"] == [FILE]
    assert service.http.delete(path).status_code == 204
    assert _scores(service) == before


_PUSHER = """
import http.client, sys
host, path, num_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = http.client.HTTPConnection(host)
connection.putrequest("PUT", path)
connection.putheader("Content-Length", str(num_bytes))
connection.endheaders()
connection.send(bytes(num_bytes // 2))
print("half", flush=True)
sys.stdin.read()
"""


def test_killing_a_pusher_in_the_middle_leaves_the_old_weights_scoring(
    service: ServiceProcess, checkpoint: Path
) -> None:
    before, data = _scores(service), save({name: tensor + 1 for name, tensor in _tensors(checkpoint).items()})
    path = f"{UPDATES}/{open_update(service.http, announce(data)).json()['update_id']}"
    arguments = [service.http.base_url.netloc.decode(), f"{path}/files/{FILE}", str(len(data))]
    with subprocess.Popen(
        [sys.executable, "-c", _PUSHER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pusher:
        assert pusher.stdout
        assert pusher.stdout.readline() == b"half\n"
        pusher.kill()
    staging = service.log.parent / "staging"
    wait_until(lambda: not list(staging.rglob("*.part")))
    assert service.http.get(path).json()["missing_files"] == [FILE]
    assert _scores(service) == before
    assert service.http.delete(path).status_code == 204
    assert push(service.http, _tensors(checkpoint), version=3).status_code == 200


# ------------------------------------------------------------------------------ how it starts and ends


def test_the_log_names_every_phase_of_loading(service: ServiceProcess) -> None:
    phases = re.findall(r"loading phase=(\w+) after_seconds=", service.log.read_text())
    assert phases == [phase for phase in LoadingPhase if phase != LoadingPhase.RESTORING_WEIGHTS]  # no --state-dir


def test_sigterm_lets_admitted_requests_finish_and_ends_with_zero(checkpoint: Path, tmp_path: Path) -> None:
    groups = [{"prompt_ids": [index], "completions": [[token] * 60 for token in range(16)]} for index in range(4)]
    with (
        service_process(tmp_path, "--model", str(checkpoint), preloaded=False) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        pending = pool.submit(service.http.post, "/v1/score", json={"groups": groups})
        wait_until(lambda: service.metrics()["vigor_queued_requests"] == 1)
        assert service.stop() == 0
        assert pending.result().status_code == 200
        assert [path.name for path in (tmp_path / "staging").iterdir()] == ["lock"]


def test_a_model_that_cannot_be_loaded_ends_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # without it the directory is refused before torch is imported
    command = [sys.executable, "-m", "vigor_service", "--port", "0", "--log-level", "error"]
    ended = subprocess.run(
        [*command, "--model", str(tmp_path)],
        env=preloaded(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("vigor-service: cannot load model")
    assert ended.stderr.count("\n") == 1
