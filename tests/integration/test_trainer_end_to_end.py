"""`vigor-trainer` against `vigor-service`, as processes, on a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.losing_proxy import FirstOfEach, Loss, losing_proxy
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import running_service, started, trainer_flags, wait_for
from vigor_client import checkpoint_tensors, digest_of_tensors
from vigor_service.engine.loading.loading import load_policy
from vigor_trainer.monitoring.records import read_records

RUN_SECONDS = 150.0
GIVE_UP_SECONDS = 60.0  # the client's bounded retries, and what a busy machine adds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def test_each_step_is_scored_by_the_weights_of_that_step(model: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    with running_service(model, tmp_path / "service.log") as service:
        initial = service.client.weights()
        flags = [*trainer_flags(service.url, model, output), "--max_steps", "3", "--save_steps", "1"]
        with started("vigor_trainer", *flags, log=log) as trainer:
            assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
        served = service.client.weights()
        wanted = service.client.tensors()
    # checkpoint-n was saved by the trainer after step n: an account of the weights that the service had no part in.
    of_step = [initial.weight_digest] + [
        digest_of_tensors(checkpoint_tensors(output / f"checkpoint-{step}"), wanted) for step in (1, 2, 3)
    ]
    assert len(set(of_step)) == 4
    records = read_records(output)
    assert [(record.weight_version, record.weight_digest) for record in records] == list(enumerate(of_step[:3]))
    assert [record.sent_bytes > 0 for record in records] == [False, True, True]
    assert (served.weight_version, served.weight_digest) == (3, of_step[3])
    assert digest_of_tensors(checkpoint_tensors(output), wanted) == served.weight_digest


@pytest.mark.slow
def test_a_run_goes_on_from_its_last_whole_checkpoint_and_has_each_step_once(model: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    with running_service(model, tmp_path / "service.log") as service:
        flags = [*trainer_flags(service.url, model, output), "--save_steps", "1"]
        for more in (["--max_steps", "3"], ["--max_steps", "4", "--resume_from_checkpoint", "true"]):
            with started("vigor_trainer", *flags, *more, log=log) as trainer:
                assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
            (output / "checkpoint-3" / "trainer_state.json").unlink(missing_ok=True)  # killed while it was saved
    assert [record.step for record in read_records(output)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_run_goes_on_when_the_first_answer_to_each_call_is_lost(model: Path, tmp_path: Path) -> None:
    output, log, first = tmp_path / "run", tmp_path / "trainer.log", FirstOfEach(Loss.ANSWER)

    def lose(method: str, path: str, headers: Mapping[str, str]) -> Loss | None:
        return None if path == "/readyz" else first(method, path, headers)  # which is asked again and again

    with running_service(model, tmp_path / "service.log") as service, losing_proxy(service.url, lose) as proxy:
        flags = [*trainer_flags(proxy.url, model, output), "--max_steps", "3", "--save_strategy", "no"]
        with started("vigor_trainer", *flags, log=log) as trainer:
            assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
        served = service.client.weights()
        wanted = service.client.tensors()
    assert [record.weight_version for record in read_records(output)] == [0, 1, 2]
    assert served.weight_version == 3
    assert digest_of_tensors(checkpoint_tensors(output), wanted) == served.weight_digest
    assert proxy.requests.count("POST /v1/weights/updates") == 2 * 3
    assert proxy.requests.count("POST /v1/score") == 2 * 3


@pytest.mark.slow
def test_a_service_with_keys_is_trained_with_by_its_publish_key_and_no_other(model: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("score", "publish", "wrong")}
    for name, file in files.items():
        file.write_text(f"key-to-{name}\n")
    keys = ("--score-key-file", str(files["score"]), "--publish-key-file", str(files["publish"]))
    with service_process(tmp_path, "--model", str(model), "--device", "cpu", *keys) as service:
        url = str(service.http.base_url).rstrip("/")
        for name, code, said in (("publish", 0, "saved"), ("score", 1, "403 forbidden"), ("wrong", 1, "401 unauth")):
            log, flags = tmp_path / f"{name}.log", trainer_flags(url, model, tmp_path / f"run-{name}")
            flags += ["--api_key_file", str(files[name]), "--max_steps", "1", "--save_strategy", "no"]
            with started("vigor_trainer", *flags, log=log) as trainer:
                assert (trainer.wait(RUN_SECONDS), said in log.read_text()) == (code, True), log.read_text()[-2000:]
            assert "key-to-" not in log.read_text()
        assert "key-to-" not in service.log.read_text()
        headers = {"Authorization": "Bearer key-to-score"}
        assert service.http.get("/v1/weights", headers=headers).json()["weight_version"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "base"])
def test_an_adapter_is_trained_by_a_service_that_holds_it_or_its_base(model: Path, tmp_path: Path, form: str) -> None:
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    served_model = model if form == "base" else save_adapter(tmp_path / "adapter", model)
    with running_service(served_model, tmp_path / "service.log") as service:
        lora = ["--use_peft", "--lora_r", "2", "--lora_alpha", "4", "--lora_target_modules", "q_proj", "v_proj"]
        flags = [*trainer_flags(service.url, model, output), *lora, "--max_steps", "3", "--save_strategy", "no"]
        with started("vigor_trainer", *flags, log=log) as trainer:
            assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
        served, wanted = service.client.weights(), service.client.tensors()
    records = read_records(output)
    assert [record.weight_version for record in records] == [0, 1, 2]
    assert (records[0].sent_bytes > 0) == (form == "adapter"), "an adapter that changes nothing yet leaves the base"
    model_bytes = (model / "model.safetensors").stat().st_size
    assert all(0 < record.sent_bytes < model_bytes / 4 for record in records[1:]), "what is trained alone"
    # What the trainer saved, loaded over its base: an account of the weights that the service had no part in.
    saved: Any = load_policy(str(output), device="cpu").model
    weights = saved.state_dict() if form == "adapter" else saved.merge_and_unload().state_dict()
    assert (served.weight_version, served.weight_digest) == (3, digest_of_tensors(weights, wanted))


def save_adapter(directory: Path, base: Path) -> Path:
    """An adapter of a checkpoint as PEFT saves it, for the service to start with."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_policy(str(base), device="cpu").model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(directory))
    return directory


@pytest.mark.slow
def test_a_service_that_stops_ends_the_run_with_one_message(model: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    with running_service(model, tmp_path / "service.log") as service:
        flags = [*trainer_flags(service.url, model, output), "--max_steps", "10000", "--save_strategy", "no"]
        with started("vigor_trainer", *flags, log=log) as trainer:
            wait_for(lambda: read_records(output), process=trainer, seconds=RUN_SECONDS, log=log)
            service.process.kill()
            assert trainer.wait(GIVE_UP_SECONDS) == 1
    text = log.read_text()
    assert text.count("vigor-trainer stopped: ") == 1
    assert "Traceback" not in text
    assert not (output / "model.safetensors").exists()
