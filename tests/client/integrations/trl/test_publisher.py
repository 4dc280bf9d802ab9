"""Weights of TRL's own trainers are published exactly before they generate, and scores come from them."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.client.fake_service import FakeService
from tests.client.integrations.grpo import stock_trainer
from tests.support.service_process import REPOSITORY, service_process
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from vigor_client import PublishResult, VigorClient, VigorError
from vigor_client.integrations.trl.async_transfer import PublishingTransfer
from vigor_client.integrations.trl.publisher import WeightPublisher, refuse_parts
from vigor_client.integrations.trl.reward import AsyncVigorReward, VigorReward

LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shared_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("service")
    with service_process(directory, "--model", str(model), "--device", "cpu") as service:
        yield str(service.http.base_url)


@pytest.fixture
def url(shared_url: str) -> Iterator[str]:
    """The service, with the tiny model's own weights as version 0."""
    yield shared_url
    with VigorClient(shared_url) as client:
        client.publish_weights(tiny_model().state_dict(), weight_version=0)


class RecordingClient:
    """What a publisher needs of `VigorClient`; remembers which versions it was given, and of which weights."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.sums: list[float] = []

    def __enter__(self) -> RecordingClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def publish_weights(
        self, tensors: Mapping[str, torch.Tensor], *, weight_version: int, **_options: object
    ) -> PublishResult:
        self.versions.append(weight_version)
        self.sums.append(sum(float(tensor.sum()) for tensor in tensors.values()))
        return PublishResult(weight_version, "xxh3-128:" + "a" * 32, sent_bytes=1, num_changed_tensors=1)


# ------------------------------------------------------------------------------------ with the real service


@pytest.mark.parametrize("kind", [VigorReward, AsyncVigorReward])
def test_stock_grpo_trains_on_rewards_of_its_current_weights(
    kind: type[VigorReward] | type[AsyncVigorReward], url: str, tmp_path: Path
) -> None:
    weights = WeightPublisher(url)
    reward = kind(url, tiny_tokenizer(), 4, weights=weights, on_failure="raise")
    trainer = stock_trainer(tmp_path, reward, weights=weights)
    trainer.train()
    rounds = [entry for entry in trainer.state.log_history if "rewards/vigor/mean" in entry]
    assert [entry["vigor/weight_version"] for entry in rounds] == [0, 1, 2]
    assert [entry["rewards/vigor/mean"] for entry in rounds] == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(entry["reward_std"] > 0.5 and entry["vigor/mean_scaled_grad_norm"] > 0 for entry in rounds)
    with VigorClient(url) as client:
        assert client.weights().weight_version == 3, "training ends with its last weights published"


def test_evaluations_are_scored_by_the_weights_they_evaluate(url: str, tmp_path: Path) -> None:
    weights = WeightPublisher(url)
    reward = VigorReward(url, tiny_tokenizer(), 4, num_generations_eval=2, weights=weights, on_failure="raise")
    settings: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
    }
    trainer = stock_trainer(tmp_path, reward, weights=weights, **settings)
    trainer.train()
    history = trainer.state.log_history
    versions = [entry["eval_vigor/weight_version"] for entry in history if "eval_vigor/weight_version" in entry]
    assert versions == [0, 1, 2]
    trainer.evaluate()  # after training the last weights are published still


def test_a_reward_without_the_publications_of_its_step_is_refused(url: str, tmp_path: Path) -> None:
    weights = WeightPublisher(url)
    reward = VigorReward(url, tiny_tokenizer(), 4, weights=weights, on_failure="raise")
    trainer = stock_trainer(tmp_path, reward)  # without the callback
    with pytest.raises(
        VigorError, match="not published, none were; give the trainer this WeightPublisher as a callback"
    ):
        trainer.train()


# --------------------------------------------------------------------------------------------- two processes


def in_two_processes(*arguments: str) -> list[dict[str, Any]]:
    """Run the program by `torchrun`; what both processes said, in the order of their ranks."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.client.integrations.two_grpo_processes", *arguments]
    finished = subprocess.run(
        [sys.executable, *launch, *program],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    said = [json.loads(line.removeprefix("said ")) for line in finished.stdout.splitlines() if line.startswith("said ")]
    return sorted(said, key=lambda process: process["rank"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["VigorReward", "AsyncVigorReward"])
def test_groups_that_two_processes_share_are_ranked_whole(kind: str, url: str, tmp_path: Path) -> None:
    first, second = in_two_processes(url, str(tmp_path), kind)
    halves = list(zip(first["calls"], second["calls"], strict=True))
    assert len(halves) == 3
    with VigorClient(url) as client:
        for mine, others in halves:
            assert len({str(prompt) for prompt in mine["prompts"] + others["prompts"]}) == 1
            group = {"messages": mine["prompts"][0], "completions": mine["ids"] + others["ids"]}
            whole = client.score([group]).groups[0].completions
            assert mine["rewards"] + others["rewards"] == [score.reward for score in whole]


@pytest.mark.slow
def test_two_processes_publish_once_and_both_know_it(url: str, tmp_path: Path) -> None:
    first, second = in_two_processes(url, str(tmp_path), "VigorReward", "publish")
    assert first["versions"] == second["versions"] == [0, 1, 2]
    with VigorClient(url) as client:
        assert client.weights().weight_version == 3


# ------------------------------------------------------------------------------------------------ when, and what


@pytest.mark.parametrize(
    ("settings", "versions"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"num_iterations": 2}, [0, 2, 4]),
        ({"steps_per_generation": 2, "per_device_train_batch_size": 4}, [0, 2, 4]),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, [0, 1, 2, 3, 4]),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, [0, 2, 4]),
        # An epoch of 16 micro steps ends with a step of one; the next generation begins where it might have.
        (
            {"gradient_accumulation_steps": 3, "steps_per_generation": 1, "num_iterations": 4, "max_steps": 7},
            [0, 1, 2, 4, 5, 6, 7],
        ),
    ],
)
def test_weights_are_published_once_per_step_that_generates(
    settings: dict[str, Any], versions: list[int], tmp_path: Path
) -> None:
    client = RecordingClient()
    weights = WeightPublisher("http://fake", connect=lambda _: client)  # pyright: ignore[reportArgumentType]
    sums: list[float] = []
    trainer = None

    def heard(completion_ids: list[list[int]], trainer_state: Any, **_others: object) -> list[float]:  # noqa: ANN401
        assert weights.at(trainer_state.global_step).weight_version == trainer_state.global_step
        sums.append(sum(float(tensor.sum()) for tensor in trainer.model.state_dict().values()))  # pyright: ignore
        return [float(sum(ids)) for ids in completion_ids]

    trainer = stock_trainer(tmp_path, heard, weights=weights, **{"max_steps": 4, **settings})
    trainer.train()
    assert client.versions == versions
    assert set(sums) <= set(client.sums), "what generates is what was published last"


def test_the_best_model_that_is_loaded_at_the_end_is_published(tmp_path: Path) -> None:
    client = RecordingClient()
    weights = WeightPublisher("http://fake", connect=lambda _: client)  # pyright: ignore[reportArgumentType]
    settings: dict[str, Any] = {
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "reward",
        "greater_is_better": False,
        "load_best_model_at_end": True,
    }

    def step(completion_ids: list[list[int]], trainer_state: Any, **_others: object) -> list[float]:  # noqa: ANN401
        return [float(trainer_state.global_step)] * len(completion_ids)  # the first evaluation is the best

    stock_trainer(tmp_path, step, weights=weights, **settings).train()
    assert client.versions == [0, 1, 2, 2]
    assert client.sums[-1] == client.sums[1], "after one step, not two"


def test_a_publication_that_fails_stops_the_run(tmp_path: Path) -> None:
    class Refusing(RecordingClient):
        def publish_weights(self, *_: object, **_options: object) -> PublishResult:
            raise VigorError("no room")

    weights = WeightPublisher("http://fake", connect=lambda _: Refusing())  # pyright: ignore[reportArgumentType]
    trainer = stock_trainer(tmp_path, lambda completion_ids, **_: [0.0] * len(completion_ids), weights=weights)
    with pytest.raises(VigorError, match="no room"):
        trainer.train()


@pytest.mark.parametrize("distribution", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_models_spread_over_processes_are_refused(distribution: str) -> None:
    with pytest.raises(VigorError, match=rf"sharded over the processes \({distribution}\); train it with"):
        refuse_parts(distribution)


# ------------------------------------------------------------------------------------------- AsyncGRPOTrainer


class InnerTransfer:
    """Remembers what it was called for; takes as many weights as it is told."""

    def __init__(self, num_taken: int) -> None:
        self.calls: list[str] = []
        self.sent: dict[str, torch.Tensor] = {}
        self._num_taken = num_taken

    def init_weight_transfer(self) -> None:
        self.calls.append("init")

    def pause(self) -> None:
        self.calls.append("pause")

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.calls.append("send")
        self.sent = dict(next(iterator) for _ in range(self._num_taken))

    def resume(self) -> None:
        self.calls.append("resume")

    def destroy(self) -> None:
        self.calls.append("destroy")


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_what_is_streamed_to_the_inference_server_is_published_too(num_taken: int) -> None:
    weights = {name: torch.rand(2, 3) for name in ("a", "b", "c")}
    service = FakeService({name: torch.zeros(2, 3) for name in weights})
    inner = InnerTransfer(num_taken)
    transfer = PublishingTransfer(
        inner, "http://fake", connect=lambda url: VigorClient(url, transport=httpx.MockTransport(service))
    )
    transfer.init_weight_transfer()
    for version in (1, 2):
        transfer.pause()
        transfer.send_weights(iter(weights.items()))
        assert (service.weight_version, service.tensors.keys()) == (version, weights.keys())
        assert all(torch.equal(service.tensors[name], weights[name]) for name in weights)
        transfer.resume()
        weights = {name: tensor + 1 for name, tensor in weights.items()}
    transfer.destroy()
    assert len(inner.sent) == num_taken
    assert inner.calls == ["init", "pause", "send", "resume", "pause", "send", "resume", "destroy"]


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_the_transfer_is_what_trl_asks_for() -> None:
    from trl.experimental.async_grpo.async_grpo_trainer import WeightTransferProtocol

    asked = {name: inspect.signature(member) for name, member in members(WeightTransferProtocol).items()}
    given = {name: inspect.signature(member) for name, member in members(PublishingTransfer).items()}
    assert {name: list(signature.parameters) for name, signature in asked.items()} == {
        name: list(signature.parameters) for name, signature in given.items()
    }


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
def test_the_service_takes_the_weights_that_trl_streams(url: str) -> None:
    from trl.experimental.async_grpo.async_grpo_trainer import _iter_vllm_named_params

    changed = tiny_model()
    with torch.no_grad():
        changed.get_parameter("model.norm.weight").add_(0.5)
    transfer = PublishingTransfer(InnerTransfer(num_taken=0), url)
    transfer.send_weights((name, parameter.detach()) for name, parameter in _iter_vllm_named_params(changed))
    with VigorClient(url) as client:
        assert client.weights().weight_version == 1


def members(kind: type) -> dict[str, Any]:
    return {name: member for name, member in vars(kind).items() if inspect.isfunction(member) and name[0] != "_"}
