"""Keys: what they are, where they come from, who may do what with them, and where they never appear."""

from __future__ import annotations

import logging
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from pydantic import SecretStr, ValidationError

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import LiveService, live_service
from vigor_client import ForbiddenError, UnauthenticatedError, VigorClient
from vigor_service import errors
from vigor_service.http.authentication import MAX_KEY_BYTES, Keys, Role, read_key
from vigor_service.runtime import LoadedModel
from vigor_service.settings import Settings

SCORE_KEY, PUBLISH_KEY = "key-of-the-scorers", "key-of-the-publisher"
GROUP = {"prompt_ids": [1], "completions": [[2]]}
PUBLIC = {"/healthz", "/readyz", "/metrics", "/", "/inspector/{name}"}
SCORING = {"/v1/score", "/v1/score/sample", "/v1/attribution", "/openrlhf/get_reward", "/slime/reward"}
PUBLISHING = {
    ("POST", "/v1/weights/updates"),
    ("PUT", "/v1/weights/updates/{update_id}/files/{name}"),
    ("POST", "/v1/weights/updates/{update_id}/take"),
    ("POST", "/v1/weights/updates/{update_id}/broadcast"),
    ("POST", "/v1/weights/updates/{update_id}/commit"),
    ("DELETE", "/v1/weights/updates/{update_id}"),
    ("PUT", "/v1/engines"),
    ("POST", "/update_weights_from_disk"),
    ("POST", "/pull_weights"),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service with both keys. It loads for ever: what a key is worth is said before that."""
    gate = threading.Event()

    def load() -> LoadedModel:
        gate.wait(60)
        return LoadedModel(FakeScorer(), None)

    keys: dict[str, Any] = {"score_key": SCORE_KEY, "publish_key": PUBLISH_KEY}
    with live_service(tmp_path_factory.mktemp("staging"), load_model=load, wait_ready=False, **keys) as running:
        yield running
        gate.set()


def bearing(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def basic(key: str, *, user: str = "any") -> str:
    return f"Basic {b64encode(f'{user}:{key}'.encode()).decode()}"


def operations(service: LiveService) -> list[tuple[str, str]]:
    """Every call that the service describes."""
    paths = service.http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, item in paths.items() for method in item]


def status(service: LiveService, method: str, path: str, key: str | None) -> int:
    return service.http.request(method, path.format(update_id="u", name="f"), headers=bearing(key)).status_code


# ------------------------------------------------------------------------------------------- who may do what


@pytest.mark.parametrize("key", [None, "wrong", SCORE_KEY.upper(), SCORE_KEY + "x", SCORE_KEY[:-1], "é"])
def test_without_a_known_key_only_probes_metrics_the_page_and_the_description_answer(
    guarded: LiveService, key: str | None
) -> None:
    for method, path in operations(guarded):
        sent = [] if key is None else [(b"Authorization", f"Bearer {key}".encode("latin-1"))]
        answer = guarded.http.request(method, path.format(update_id="u", name="f"), headers=sent)
        assert (answer.status_code == 401) == (path not in PUBLIC), (method, path)
        if path not in PUBLIC:
            assert answer.json()["code"] == "unauthenticated"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert guarded.http.get("/docs").status_code == 200


def test_the_score_key_scores_and_reads_and_does_not_publish(guarded: LiveService) -> None:
    forbidden = {call for call in operations(guarded) if status(guarded, *call, SCORE_KEY) == 403}
    assert forbidden == PUBLISHING
    answer = guarded.http.post("/v1/weights/updates", headers=bearing(SCORE_KEY))
    assert (answer.json()["code"], answer.headers.get("WWW-Authenticate")) == ("forbidden", None)


def test_the_publish_key_may_do_all_and_then_hears_that_the_model_is_loading(guarded: LiveService) -> None:
    statuses = {call: status(guarded, *call, PUBLISH_KEY) for call in operations(guarded)}
    assert {answered for (_, path), answered in statuses.items() if path not in PUBLIC} == {503}


@pytest.mark.parametrize("header", [basic(SCORE_KEY), f"Basic {SCORE_KEY}", SCORE_KEY, f"bearer {SCORE_KEY}"])
def test_where_weights_are_read_a_key_counts_as_a_bearer_token_alone(guarded: LiveService, header: str) -> None:
    answer = guarded.http.get("/v1/weights", headers={"Authorization": header})
    # The scheme's name may be written in any case (RFC 9110, section 11.1).
    assert answer.status_code == (503 if header.startswith("bearer ") else 401)


@pytest.mark.parametrize("key", [SCORE_KEY, PUBLISH_KEY])
@pytest.mark.parametrize("user", ["", "anybody", "é"])
def test_as_a_password_a_key_may_score_and_nothing_else(guarded: LiveService, key: str, user: str) -> None:
    headers = {"Authorization": basic(key, user=user)}
    for method, path in operations(guarded):
        answer = guarded.http.request(method, path.format(update_id="u", name="f"), headers=headers)
        assert path in PUBLIC or answer.status_code == (503 if path in SCORING else 401), (method, path)


@pytest.mark.parametrize(
    "header",
    [
        basic("wrong"),
        basic(SCORE_KEY + "x"),
        basic(""),
        f"Basic {SCORE_KEY}",
        "Basic",
        "Basic ?",
        "Basic é",
        f"Basic {b64encode(SCORE_KEY.encode()).decode()}",  # a user without a password
        f"Digest {basic(SCORE_KEY).removeprefix('Basic ')}",
    ],
)
def test_what_is_no_known_password_is_refused(guarded: LiveService, header: str) -> None:
    answer = guarded.http.post("/v1/score", headers=[(b"Authorization", header.encode("latin-1"))])
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_clients_that_are_told_a_url_alone_may_score(tmp_path: Path) -> None:
    """Those that OpenRLHF (requests) and slime (aiohttp, as httpx) call with; both take the key from the URL."""
    with live_service(tmp_path, score_key=SCORE_KEY) as service:
        url = f"http://any:{SCORE_KEY}@127.0.0.1:{service.http.base_url.port}"
        sample = {"prompt": "a", "response": "b", "label": None}
        with httpx.Client() as http:
            assert http.post(f"{url}/slime/reward?group_size=1", json=sample).json() == 0.0
        body = {"query": ["ab"], "prompts": ["a"], "labels": [None]}
        answer = requests.post(url=f"{url}/openrlhf/get_reward?group_size=1", json=body, timeout=30)
        assert answer.json()["rewards"] == [0.0]


def test_a_service_with_a_publish_key_alone_wants_it_for_scoring_too(tmp_path: Path) -> None:
    with live_service(tmp_path, publish_key=PUBLISH_KEY) as service:
        assert service.score(groups=[GROUP]).status_code == 401
        service.http.headers.update(bearing(PUBLISH_KEY))
        assert service.score(groups=[GROUP]).status_code == 200


def test_a_service_with_a_score_key_alone_lets_nobody_publish(tmp_path: Path) -> None:
    with live_service(tmp_path, score_key=SCORE_KEY) as service:
        assert service.http.post("/v1/weights/updates").status_code == 401
        service.http.headers.update(bearing(SCORE_KEY))
        assert service.score(groups=[GROUP]).status_code == 200
        refused = service.http.post("/v1/weights/updates")
        assert (refused.status_code, "no publish key" in refused.json()["detail"]) == (403, True)


def test_the_client_sends_its_key_and_knows_both_refusals(tmp_path: Path) -> None:
    with live_service(tmp_path, score_key=SCORE_KEY, publish_key=PUBLISH_KEY) as service:
        url = str(service.http.base_url)
        with VigorClient(url) as client, pytest.raises(UnauthenticatedError):
            client.score([GROUP])
        changed = {name: tensor + 1 for name, tensor in service.scorer.parameters.items()}
        with VigorClient(url, api_key=SCORE_KEY) as client:
            assert client.score([GROUP]).weight_version == 0
            with pytest.raises(ForbiddenError):
                client.publish_weights(changed, weight_version=1)
        with VigorClient(url, api_key=PUBLISH_KEY) as client:
            assert client.publish_weights(changed, weight_version=1).weight_version == 1


@pytest.mark.parametrize(
    ("keys", "described"),
    [
        (Keys(), {"score": "open", "publish": "open"}),
        (Keys(score=SecretStr("s")), {"score": "score_key", "publish": "disabled"}),
        (Keys(publish=SecretStr("p")), {"score": "publish_key", "publish": "publish_key"}),
        (Keys(score=SecretStr("s"), publish=SecretStr("p")), {"score": "either_key", "publish": "publish_key"}),
    ],
)
def test_the_log_says_who_may_score_and_publish(keys: Keys, described: dict[str, str]) -> None:
    assert keys.describe() == described


def test_without_keys_nobody_has_to_show_one() -> None:
    Keys().require(Role.PUBLISH, None)
    with pytest.raises(errors.UnauthenticatedError):
        Keys(score=SecretStr("s")).require(Role.SCORE, None)


# ------------------------------------------------------------------------------------- where they never appear


def test_keys_appear_in_no_log_no_description_no_answer_and_no_repr(
    tmp_path: Path, text_log: pytest.LogCaptureFixture
) -> None:
    with (
        text_log.at_level(logging.DEBUG),
        live_service(tmp_path, score_key=SCORE_KEY, publish_key=PUBLISH_KEY) as service,
    ):
        answers = [
            service.http.request(method, path.format(update_id="u", name="f"), headers=bearing(key)).text
            for method, path in [*operations(service), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nowhere")]
            for key in (None, "wrong", SCORE_KEY, PUBLISH_KEY)
        ]
        settings = service.runtime.settings
    seen = [
        text_log.text,
        repr(settings),
        str(settings),
        repr(Keys(settings.score_key, settings.publish_key)),
        *answers,
    ]
    assert "route=/v1/score status=401" in text_log.text
    assert [text for text in seen if SCORE_KEY in text or PUBLISH_KEY in text] == []


# ----------------------------------------------------------------------------------------- where they come from


@pytest.mark.parametrize("content", [b"s3cret", b"s3cret\n", b"s3cret\r\n"])
def test_a_file_holds_a_key_with_or_without_an_end_of_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    assert read_key(tmp_path / "key") == "s3cret"
    settings = Settings(score_key_file=tmp_path / "key", publish_key="p")  # pyright: ignore[reportArgumentType]
    assert settings.score_key == SecretStr("s3cret")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has 0 lines"),
        (b"\n", "printable ASCII"),
        (b"one-s3cret\ntwo-s3cret\n", "has 2 lines"),
        (b"a s3cret\n", "printable ASCII"),
        (b"s3cret\xff\n", "printable ASCII"),
        (b"s3cret" * MAX_KEY_BYTES, f"more than {MAX_KEY_BYTES} bytes"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused_by_name_and_not_shown(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ValidationError, match=complaint) as raised:
        Settings(publish_key_file=file)
    assert f"--publish-key-file (VIGOR_PUBLISH_KEY_FILE): {file}" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    for file, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValidationError, match=rf"--score-key-file \(VIGOR_SCORE_KEY_FILE\): {file} .*{reason}"):
            Settings(score_key_file=file)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"score_key": "s3cret", "score_key_file": "f"}, r"--score-key .* --score-key-file .*: give only one"),
        ({"publish_key": "s3cret", "publish_key_file": "f"}, r"--publish-key .* --publish-key-file .*: give only one"),
        ({"score_key": "s3cret", "publish_key": "s3cret"}, "are the same"),
        ({"score_key": "s3cret", "allow_anonymous": True}, "--allow-anonymous .* cannot be combined with a key"),
        ({"score_key": ""}, r"--score-key \(VIGOR_SCORE_KEY\): a key must be printable ASCII"),
        ({"publish_key": "s3cret é"}, r"--publish-key \(VIGOR_PUBLISH_KEY\): a key must be printable ASCII"),
    ],
)
def test_keys_that_contradict_or_cannot_be_sent_are_refused_and_not_shown(
    given: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint) as raised:
        Settings.model_validate(given)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("key", ["score_key", "publish_key"])
def test_a_key_is_permission_to_listen_where_others_reach_the_service(key: str) -> None:
    settings = Settings.model_validate({"host": "10.0.0.7", key: "s3cret"})
    assert not settings.allow_anonymous


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("p")
    monkeypatch.setenv("VIGOR_SCORE_KEY", "s")
    monkeypatch.setenv("VIGOR_PUBLISH_KEY_FILE", str(tmp_path / "key"))
    settings = Settings()
    assert (settings.score_key, settings.publish_key) == (SecretStr("s"), SecretStr("p"))


def test_the_description_tells_which_calls_take_a_key(guarded: LiveService) -> None:
    document = guarded.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["components"]["securitySchemes"]["key_as_password"]["scheme"] == "basic"
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert ("security" in operation) == ("401" in operation["responses"]) == (path not in PUBLIC)
            schemes = {name for requirement in operation.get("security", []) for name in requirement}
            assert ("key_as_password" in schemes) == (path in SCORING)
            assert ("403" in operation["responses"]) == ((method.upper(), path) in PUBLISHING)
